"""What training takes as steps, products, states and processes grow: a model, and measurements against it."""
