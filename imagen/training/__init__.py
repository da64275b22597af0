"""Training whatever a task says: the loop, EMA, exact resume points, metrics, optimizers, configurations."""
