"""The HTTP transport: a FastAPI application whose hot path is plain ASGI."""

from serving.transports.http.app import Application, create_app

__all__ = ["Application", "create_app"]
