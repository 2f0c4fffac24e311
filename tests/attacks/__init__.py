"Hostile and broken input, drawn by a seed: `make attack`"
