"""Judging finished pictures: a detector for the shapes world, alignment and super-resolution checks, and their plots.

The detector shares no code with the renderer. The commands are ``python -m imagen.evaluation`` followed by
``alignment``, ``sweep``, ``guidances``, ``superres`` or ``curves``.
"""
