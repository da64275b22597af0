"""Training one stage of the cascade."""
