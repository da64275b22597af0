"""Public checkpoints in and out: DeepFloyd IF, as diffusers stores it. Nothing is unpickled."""
