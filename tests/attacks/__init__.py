"Hostile and broken input, at a seed: `make attack`"
