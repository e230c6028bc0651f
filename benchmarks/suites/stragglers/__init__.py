"""``sensai bench stragglers``: slow, dead and wrong workers, and overload."""
