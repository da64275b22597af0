"""A stage and how it samples: declared once, stored and read in one place. No torch but in ``load``."""
