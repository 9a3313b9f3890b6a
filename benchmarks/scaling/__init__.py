"""The cost of a training step as steps, products, states and processes grow: a model, and measurements."""
