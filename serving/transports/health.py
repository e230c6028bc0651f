"""A plain HTTP listener for probes: it answers whether the server lives and is ready, and nothing else.

Kubernetes' probes show no certificate, and those over gRPC cannot use TLS: ``--listen health=ADDRESS`` is for them.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from serving.dataplane import DataPlane
from serving.security.access import Access
from serving.settings import Settings
from serving.transports import Listener
from serving.transports.http.server import listen_with

CONNECTIONS = 16
"""Connections that may be open: probes are few."""


def listen(plane: DataPlane, settings: Settings, address: str) -> AbstractAsyncContextManager[Listener]:
    """Serve health over HTTP, never encrypted, while the block runs; see `serving.transports.Listen`.

    Raises:
        InputError: `address` is malformed, in use, or not of this machine.
    """
    return listen_with(plane, settings, address, Access(answered=None), encrypted=False, connections=CONNECTIONS)
