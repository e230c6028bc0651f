"""A page of another site can neither change anything here nor read it, unless the operator allows its origin."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from serving.address import Address, UnixAddress
from serving.transports.http.asgi.sites import Sites

INFER = "/v2/models/tiny/infer"
BODY = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0] * 192}]}
CHANGES = [INFER, "/v1/predict", "/v2/logging", "/v2/trace/setting", "/v2/repository/index",
           "/v2/repository/models/tiny/unload", "/v2/systemsharedmemory/unregister", "/nothing"]  # fmt: skip


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "http://localhost.evil.example"]
)
def test_a_page_of_another_origin_changes_nothing(server, path: str, origin: str) -> None:
    reply = httpx.post(server.url + path, json=BODY, headers={"Origin": origin})
    assert (reply.status_code, list(reply.json())) == (403, ["error"])
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "notlocalhost"])
def test_a_name_that_is_not_this_servers_is_refused_again_and_again(server, host: str) -> None:
    with httpx.Client(base_url=server.url) as client:
        for _ in range(3):
            assert client.post(INFER, json=BODY, headers={"Host": host}).status_code == 421
            assert client.post(INFER, json=BODY).status_code == 200
            assert client.get("/v2/health/ready", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "app.localhost", "127.0.0.1", "[::1]:8000", "192.0.2.7"])
def test_names_of_this_machine_and_ip_addresses_are_answered(server, host: str) -> None:
    for _ in range(2):
        assert httpx.post(server.url + INFER, json=BODY, headers={"Host": host}).status_code == 200


def test_pages_of_the_server_itself_may_use_it(server) -> None:
    assert httpx.post(server.url + INFER, json=BODY, headers={"Origin": server.url}).status_code == 200
    same = {"Sec-Fetch-Site": "same-origin"}
    assert httpx.post(server.url + INFER, json=BODY, headers=same).status_code == 200
    assert httpx.post(server.url + INFER, json=BODY, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_websockets(server) -> None:
    url = f"ws{server.url.removeprefix('http')}/v1/stream"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, origin="http://evil.example")  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403
    with connect(url, origin=server.url) as stream:  # type: ignore[arg-type]
        stream.send(np.zeros(1, np.float32).tobytes())
        assert "error" in str(stream.recv())


def test_origins_and_hosts_that_are_allowed(run_server, tiny_bundle: Path) -> None:
    origin, names = "https://app.example", ("*.inside.example", "gateway.example")
    with run_server(tiny_bundle, allowed_origins=(origin,), allowed_hosts=names) as server:
        for path in (INFER, "/v2/logging"):
            body: Any = BODY if path == INFER else {}
            reply = httpx.post(server.url + path, json=body, headers={"Origin": origin})
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, origin)
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
            preflight = httpx.options(server.url + path, headers=asked)
            assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (204, "x-a")
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert preflight.headers["access-control-allow-origin"] == origin
            stranger = httpx.options(server.url + path, headers=asked | {"Origin": "https://other.example"})
            assert "access-control-allow-origin" not in stranger.headers
        for host, status in [("a.inside.example", 200), ("gateway.example:80", 200), ("inside.example", 421)]:
            assert httpx.get(f"{server.url}/v2", headers={"Host": host}).status_code == status


def test_which_names_a_listener_has() -> None:
    everywhere, name = Sites(Address(host="0.0.0.0", port=1)), {b"host": b"gateway.lan"}
    assert everywhere.refusal("GET", {b"host": socket.gethostname().encode()}) is None
    assert everywhere.refusal("GET", name) is not None
    assert Sites(Address(host="gateway.lan", port=1)).refusal("GET", name) is None
    assert Sites(UnixAddress(path=Path("/x"))).refusal("GET", name) is None
    assert Sites(hosts=["*"]).refusal("GET", name) is None
