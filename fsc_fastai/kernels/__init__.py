"Operations that only make CPUs faster"
