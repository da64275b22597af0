"""What a run starts from: a new network or a trained stage, and checks before anything loads."""
