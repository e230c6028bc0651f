"""The HTTP transport: a FastAPI application whose hot path is plain ASGI."""

from serving.transports.http.server import listen

__all__ = ["listen"]
