"A method beside its support, and what adapts a model to its support"
