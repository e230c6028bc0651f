"""The process backend: subnets in processes of their own, restarted when they die."""

from serving.backends.process.backend import Backend

__all__ = ["Backend"]
