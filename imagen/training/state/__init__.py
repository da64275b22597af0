"""What a run keeps: the average of the weights, and resume points."""
