"""Is a one-step gradient enough? Gradient errors during training, results of trainings, and limits of their states."""
