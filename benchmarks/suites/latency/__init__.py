"""``sensai bench latency``: reference, monolith and class-parallel over every transport."""
