"Operations that only make training faster"
