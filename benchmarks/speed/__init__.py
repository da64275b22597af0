"""What ``python -m benchmarks.gpu`` measures: sampling and training, ours beside others'."""
