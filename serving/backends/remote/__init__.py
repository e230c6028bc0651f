"""The remote backend: subnets on other machines, reached over gRPC or HTTP."""

from serving.backends.remote.backend import Backend

__all__ = ["Backend"]
