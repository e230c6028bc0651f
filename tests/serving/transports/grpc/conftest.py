"""Fixtures: the tiny bundle served over both transports of gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from sensai_serve.bundles import Bundle
from sensai_serve.golden import Golden

BODY = 100_000


@pytest.fixture(scope="module", params=["grpc", "grpc-native"])
def transport(request) -> str:
    """Both transports of gRPC."""
    return request.param


@pytest.fixture(scope="module")
def loopback(transport: str) -> dict[str, tuple[str, ...]]:
    """The setting that has a server listen on a free port."""
    return {"listen": (f"{transport}=127.0.0.1:0",)}


@pytest.fixture(scope="module")
def served(run_server, tiny_bundle, loopback) -> Iterator[Any]:
    with run_server(tiny_bundle, **loopback, limits={"body_bytes": BODY}) as server:
        yield server


@pytest.fixture
def channel(served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def golden(tiny_bundle) -> Golden:
    return Bundle.open(tiny_bundle).golden()
