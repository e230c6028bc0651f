"""Plain ASGI, shared by all routes: request bodies, compression, errors, whole replies."""
