"""The parts of the cascade around its networks: what a stage stores, pictures in and out, seeds, model folders."""
