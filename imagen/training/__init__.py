"""Training one stage of the cascade: configuration, the loop, EMA, exact checkpoints, export and composition."""
