"""The configuration of a stage's training."""
