"""Numbers for sets of pictures: feature networks, and the distances and shares that are computed of their features."""
