"Relevance: rules by layer, the engine that applies them, heatmaps"
