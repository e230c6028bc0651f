"""Measures and reports ``sensai compare``."""
