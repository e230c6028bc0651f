"""What gateways and relays send each other: read as it was written, and one line for what is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_nodes import (
    NOBODY,
    a_node,
    a_stream,
)
from tritonclient.grpc import service_pb2 as pb

from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.errors import RequestError
from sensai_serve.input_spec import InputSpec
from serving.backends.remote.branch import Branch, decode, digest_of, encode
from serving.backends.remote.message import EncodedInput, below, head, particulars, raw_contents
from serving.backends.remote.pieces import cut
from serving.runtime.endpoint import Security


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected [[URL, workers, branches], ...]"),
        ("[" * 100_000, "expected [[URL, workers, branches], ...]"),
        ('[["grpc://a:1", ["1"], []]]', "expected [[URL, workers, branches], ...]"),
        ('[["grpc://a:1", [], []]]', "expected [[URL, workers, branches], ...]"),
        ('[["grpc://a:1", [0], []]]', "worker 0 is in the tree twice, expected no loop"),
        ('[["grpc://a:1", [1], [["grpc://b:1", [1], []]]]]', "worker 1 is in the tree twice, expected no loop"),
        ('[["http://a:1", [1], []]]', "http://a:1 is no node, expected grpc"),
        ('[["nowhere", [1], []]]', "'nowhere' is no server"),
    ],
)
def test_what_a_node_cannot_hand_on_is_one_line(tiny_bundle: Path, text: str, message: str) -> None:
    async def test() -> str:
        async with a_node(tiny_bundle, (0,)) as url, a_stream(tiny_bundle, url) as call:
            digest = digest_of(Bundle.open(tiny_bundle).manifest)
            await call.write(pb.ModelInferRequest.FromString(head("tiny", "1") + below(text, digest)))
            return str((await call.read()).error_message)

    said = asyncio.run(test())
    assert message in said
    assert "\n" not in said


def test_a_tree_is_of_one_bundle_and_hides_its_token(tiny_bundle: Path, tmp_path: Path) -> None:
    async def test(security: Security | None, digest: str) -> str:
        async with a_node(tiny_bundle, (0,), relay=security) as url, a_stream(tiny_bundle, url) as call:
            text = encode((Branch("grpc://a:1", (1,)),))
            await call.write(pb.ModelInferRequest.FromString(head("tiny", "1") + below(text, digest)))
            return str((await call.read()).error_message)

    (tmp_path / "token").write_text("open-sesame")
    digest = digest_of(Bundle.open(tiny_bundle).manifest)
    assert "the gateway's bundle has other subnets" in asyncio.run(test(NOBODY, "0"))
    assert "relay: expected once, to a node with --relay" in asyncio.run(test(None, digest))
    assert "no token is sent in the clear" in asyncio.run(test(Security(token_file=tmp_path / "token"), digest))


@pytest.mark.parametrize(
    ("count", "pieces", "message"),
    [
        (5000, (b"",), "pieces is 5000, expected 1 to 4096"),
        (1, (b"", b""), "expected one piece in raw_input_contents, not 2"),
        (1, (b"\xff" * 100,), "the request is no ModelInferRequest message"),
        (1, (b"",), "expected one input, 'input', in raw_input_contents"),
        (2, (b"x" * 3_000_000, b"x" * 3_000_000), "the pieces have 6000000 bytes, expected at most"),
    ],
)
def test_wrong_pieces_are_one_line(tiny_bundle: Path, count: int, pieces: tuple[bytes, ...], message: str) -> None:
    async def test() -> str:
        async with a_node(tiny_bundle, (0,)) as url, a_stream(tiny_bundle, url) as call:
            start = head("tiny", "1", (0,)) + particulars(1, pieces=count)
            if count == 2:
                for at, piece in enumerate(pieces):
                    before = start if not at else head("tiny", "1") + particulars(1, pieces=0)
                    await call.write(pb.ModelInferRequest.FromString(before + raw_contents(len(piece)) + piece))
            else:
                await call.write(
                    pb.ModelInferRequest.FromString(
                        start + b"".join(raw_contents(len(piece)) + piece for piece in pieces)
                    )
                )
            return str((await call.read()).error_message)

    assert message in asyncio.run(test())


@given(st.integers(1, 5000), st.integers(1, 4000))
def test_pieces_make_the_input_again(values: int, piece_bytes: int) -> None:
    spec = InputSpec(shape=(values,))
    message = EncodedInput(np.arange(values, dtype=np.float32)[None], (spec,), None)
    pieces = cut(message, piece_bytes)
    early: list[bytes] = []
    pieces.follow(early.append)
    assert pieces.complete
    assert pieces.joined() == b"".join(early) == message.grpc
    assert max(map(len, early)) <= max(piece_bytes, -(-len(message.grpc) // 4096))


WORKER = st.builds(lambda worker: (worker,), st.integers(0, 10**9))
BRANCHES = st.recursive(
    st.builds(Branch, st.just("grpc://a:1"), WORKER, st.just(())),
    lambda below: st.builds(Branch, st.just("grpc://b:1"), WORKER, st.lists(below, max_size=3).map(tuple)),
    max_leaves=8,
)


@given(st.lists(BRANCHES, max_size=3).map(tuple))
def test_branches_are_read_as_they_are_written(branches: tuple[Branch, ...]) -> None:
    workers = [worker for branch in branches for worker in branch.all_workers]
    if len(set(workers)) == len(workers):
        assert decode(encode(branches), ()) == branches


def test_a_deep_tree_is_refused() -> None:
    branch = Branch("grpc://a:1", (1,))
    for worker in range(2, 70):
        branch = Branch("grpc://a:1", (worker,), (branch,))
    with pytest.raises(RequestError, match="the tree is"):
        decode(encode((branch,)), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--worker-token-file", "token"), "expected --relay with them"),
        (("--relay", "--worker-token-file", "nowhere"), "nowhere cannot be read: No such file"),
        (("--relay", "--worker-cert", "cert"), "a certificate and its key go together"),
    ],
)
def test_a_wrong_relay_is_one_line(capsys, tiny_bundle: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["node", str(tiny_bundle), "--grpc", "127.0.0.1:0", *options])
    err = capsys.readouterr().err
    assert (ended.value.code, err.count("\n")) == (2, 1), err
    assert message in err
