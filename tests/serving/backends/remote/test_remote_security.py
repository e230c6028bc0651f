"""Tokens and TLS between a gateway and the servers of its workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from remote_workers import LOOPBACK, NOBODY, a_gateway, inputs

import sensai_serve
from serving.node.node import Node
from serving.node.options import NodeOptions
from serving.node.server import serving as node_serving
from serving.runtime.devices import parse_device
from serving.runtime.endpoint import Security


def test_the_token_is_shown_and_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        (tmp_path / name).write_text(f"{name}-token\n")
        (tmp_path / name).chmod(0o600)

    async def test() -> None:
        node = Node(tiny_bundle, NodeOptions(devices=(parse_device("cpu"),)))
        async with node_serving(node, LOOPBACK, Security(token_file=tmp_path / "right")) as url:
            async with a_gateway(tiny_bundle, f"*={url}", security=Security(token_file=tmp_path / "right")) as gateway:
                assert (await gateway.infer(inputs(), wait="all")).answer.missing == ()
            for security in (NOBODY, Security(token_file=tmp_path / "wrong")):
                with pytest.raises(sensai_serve.errors.InputError, match="refuses access: the token is missing"):
                    async with a_gateway(tiny_bundle, f"*={url}", security=security):
                        pass

    asyncio.run(test())


def test_mutual_tls_and_a_token_all_the_way(tiny_bundle: Path, authority: Path) -> None:
    pem = {name: authority / name for name in ("ca.pem", "node.pem", "node.key", "gateway.pem", "gateway.key")}
    token = authority / "token"
    known = Security(pem["ca.pem"], pem["gateway.pem"], pem["gateway.key"], token)
    strangers = {
        Security(pem["ca.pem"], authority / "stranger.pem", authority / "stranger.key", token): " (closed|cannot)",
        Security(pem["ca.pem"], None, None, token): " (closed|cannot)",
        Security(authority / "stranger.pem", pem["gateway.pem"], pem["gateway.key"], token): " cannot be trusted: ",
        Security(pem["ca.pem"], pem["gateway.pem"], pem["gateway.key"]): " refuses access: the token is missing",
    }

    async def test() -> None:
        node = Node(tiny_bundle, NodeOptions(devices=(parse_device("cpu"),)))
        ours = Security(pem["ca.pem"], pem["node.pem"], pem["node.key"], token)
        async with node_serving(node, LOOPBACK, ours) as url:
            async with a_gateway(tiny_bundle, f"*={url}", security=known) as gateway:
                assert (await gateway.infer(inputs(), wait="all")).answer.missing == ()
            for security, message in strangers.items():
                with pytest.raises(sensai_serve.errors.InputError, match=f"^{url}.*{message}") as refused:
                    async with a_gateway(tiny_bundle, f"*={url}", security=security):
                        pass
                assert "\n" not in str(refused.value)

    asyncio.run(test())


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ca.pem", "gateway.pem", "node.key"), r"^\S+node.key is not the private key of \S+gateway.pem$"),
        (("ca.pem", "old.pem", "old.key"), r"^\S+old.pem is not valid for servers today: certificate has expired$"),
        (("token",), r"^\S+token holds no certificates, expected PEM$"),
        (("nowhere",), r"^\S+nowhere cannot be read: No such file or directory$"),
    ],
)
def test_what_is_wrong_with_the_gateways_own_files_is_no_fault_of_the_server(
    tiny_bundle: Path, authority: Path, scheme: str, names: tuple[str, ...], message: str
) -> None:
    security = Security(*(authority / name for name in names))

    async def test() -> None:
        with pytest.raises(sensai_serve.errors.InputError, match=message):
            async with a_gateway(tiny_bundle, f"*={scheme}://127.0.0.1:1", security=security):
                pass

    asyncio.run(test())
