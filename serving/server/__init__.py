"""The server process: listen, load and check the models, answer until told to stop, drain."""

from serving.server.listeners import listening
from serving.server.run import OnReady, run, serve

__all__ = ["OnReady", "listening", "run", "serve"]
