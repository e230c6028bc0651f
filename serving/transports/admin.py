"""The HTTP listener for operators, which the setting ``admin`` gives an address."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from serving.dataplane import DataPlane
from serving.settings import Settings
from serving.transports import Listener
from serving.transports.http.server import listen_with


def listen(plane: DataPlane, settings: Settings, address: str) -> AbstractAsyncContextManager[Listener]:
    """Serve HTTP for operators while the block runs; see `serving.transports.Listen`.

    Raises:
        InputError: `address` is malformed, in use, or not of this machine.
    """
    return listen_with(plane, settings, address, plane.operators_access)
