"""Where a server can listen: both families, all addresses of the machine, names, Unix domain sockets."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc

from sensai_serve.errors import InputError
from serving.address import Address, UnixAddress, parse_address
from serving.runtime.systemd import InheritedSockets
from serving.transports.http.bind import bound

NONE = InheritedSockets()

IPV6 = socket.has_dualstack_ipv6()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address(host="127.0.0.1", port=80)),
        ("[::1]:80", Address(host="::1", port=80)),
        (":80", Address(host="", port=80)),
        ("unix:/run/a.sock", UnixAddress(path=Path("/run/a.sock"))),
        ("unix:///run/a.sock", UnixAddress(path=Path("/run/a.sock"))),
        ("unix:a.sock", UnixAddress(path=Path("a.sock"))),
    ],
)
def test_addresses_are_read_as_users_write_them(text: str, address: Address | UnixAddress) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", "80", "a", "unix:", "::1:80", "a:b", "a:99999", "a:-1", "a:8²"])
def test_text_that_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address, expected"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "is_loopback"), [(":1", False), ("[::]:1", False), ("[::1]:1", True), ("unix:a", True)]
)
def test_who_can_connect(text: str, is_loopback: bool) -> None:
    assert parse_address(text).is_loopback is is_loopback


@pytest.mark.parametrize(
    ("address", "families"),
    [
        (":0", ["127.0.0.1", "::1"] if IPV6 else ["127.0.0.1"]),
        pytest.param("[::]:0", ["127.0.0.1", "::1"], marks=pytest.mark.skipif(not IPV6, reason="no IPv6 here")),
        ("0.0.0.0:0", ["127.0.0.1"]),
        ("localhost:0", sorted({str(info[4][0]) for info in socket.getaddrinfo("localhost", 0)})),
    ],
)
def test_a_listener_answers_on_every_address_that_it_means(address: str, families: list[str]) -> None:
    with bound(address, NONE) as (sockets, url):
        for host in families:
            socket.create_connection((host, int(url.rpartition(":")[2])), timeout=30).close()
        for sock in sockets:
            sock.close()


def test_a_port_that_is_taken_for_one_address_of_a_name_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with (
            pytest.raises(InputError, match=f"cannot listen on {address}: Address already in use"),
            bound(address, NONE),
        ):
            pass


def test_http_and_grpc_over_unix_sockets(run_server, tiny_bundle: Path, tmp_path: Path) -> None:
    http, grpc = tmp_path / "http.sock", tmp_path / "grpc.sock"
    with run_server(tiny_bundle, listen=f"http=unix:{http} grpc=unix:{grpc}"):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(http)), base_url="http://sensai") as client:
            assert client.get("/v2/health/ready").json() == {"ready": True}
            over_http = client.post("/v1/predict", json={"inputs": np.zeros((3, 8, 8)).tolist()}).json()["class_id"]
            inputs = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.0] * 192}
            assert client.post("/v2/models/tiny/infer", json={"inputs": [inputs]}).status_code == 200
        assert over_http in range(10)
        with tritonclient.grpc.InferenceServerClient(f"unix:{grpc}") as triton:
            assert triton.is_model_ready("tiny")
        with (
            pytest.raises(InputError, match=f"cannot listen on unix:{http}: another server listens there"),
            bound(f"unix:{http}", NONE),
        ):
            pass
        with (
            pytest.raises(InputError, match="another server listens there"),
            run_server(tiny_bundle, grpc=f"unix:{grpc}"),
        ):
            pass
    assert not http.exists()
    assert not grpc.exists()


def test_the_socket_of_a_server_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    with bound(f"unix:{path}", NONE) as (sockets, url):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(path))
        sockets[0].close()
    assert url == f"http+unix://{path}"


def test_a_server_that_ends_leaves_the_socket_of_the_one_in_its_place(tmp_path: Path) -> None:
    with contextlib.ExitStack() as successor:
        with bound(f"unix:{tmp_path / 'sock'}", NONE) as (sockets, _):
            sockets[0].close()  # it takes no more, and answers what it has
            new, _ = successor.enter_context(bound(f"unix:{tmp_path / 'sock'}", NONE))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "sock"))
        new[0].close()
    assert not (tmp_path / "sock").exists()


@pytest.mark.parametrize("name", ["file", "missing/a.sock", "x" * 200])
def test_where_no_socket_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(InputError, match=f"cannot listen on unix:{tmp_path}/{name}: "),
        bound(f"unix:{tmp_path / name}", NONE),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"
