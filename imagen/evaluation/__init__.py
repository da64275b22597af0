"""Judging finished pictures: a detector for the shapes world, alignment and super-resolution checks, and their plots.

Nothing here shares code with the renderer. The commands are ``python -m imagen.evaluation {alignment,sweep,superres,curves}``.
"""
