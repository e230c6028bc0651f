"""A model's workers: requests fanned out to them, all at once or in waves, and how each worker is doing."""
