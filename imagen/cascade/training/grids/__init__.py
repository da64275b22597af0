"""The grids of samples drawn while training."""
