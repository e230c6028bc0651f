"""Makes the points of ``sensai compare``: monoliths and class-parallel networks of several sizes."""
