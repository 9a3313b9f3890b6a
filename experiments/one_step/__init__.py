"""Is a one-step gradient enough: gradient errors over training, what trainings end in, and limits of their states."""
