"Backbones and few-shot models: encode, process, classify"
