"""CLIP, trained by the loop that trains the stages: pictures and captions into one space (Radford et al. 2021)."""
