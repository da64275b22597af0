"""What a run tells: metrics, progress, pictures that could not be used."""
