"""The in-process backend: subnets on threads of the gateway."""

from serving.backends.ort.backend import Backend

__all__ = ["Backend"]
