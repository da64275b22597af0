"""Optimizers, and their learning rate as a function of the step."""
