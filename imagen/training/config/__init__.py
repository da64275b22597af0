"""The sections of a configuration that any training has, and the reading of configurations."""
