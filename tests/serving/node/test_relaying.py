"""Nodes that hand inputs on: labels as without a tree, lost and slow relays, and one line for what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import tomllib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

import sensai_serve
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.errors import InputError, RequestError
from sensai_serve.input_spec import InputSpec
from serving.address import Address
from serving.backends import Cause
from serving.backends.remote.branch import Branch, decode, digest_of, encode
from serving.backends.remote.message import EncodedInput, below, head, particulars, raw_contents
from serving.backends.remote.pieces import cut
from serving.engine.gateway import Gateway
from serving.engine.health import State
from serving.engine.options import GatewayOptions
from serving.node.node import Node, NodeOptions
from serving.node.server import serving
from serving.placement.worker_map import parse_workers
from serving.runtime.devices import parse_device
from serving.runtime.endpoint import Security
from serving.runtime.faults import parse_fault

NOBODY = Security()
PARTS = ((0, 3, 6, 9), (1, 4, 7), (2, 5, 8))
SIZE = 4 * 3 * 8 * 8 * 4
"""Bytes of the inputs that most requests here have."""
LARGE = "relay inputs from 1 bytes in pieces of 1024"


def inputs(seed: int = 0, n: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3, 8, 8)).astype(np.float32)


class Link:
    """Stands for the network to one node, and counts what it passes by connection, in the order of their start."""

    def __init__(self, host: str, port: int) -> None:
        self.sent: list[int] = []
        """Bytes to the node, by connection."""
        self.delay_s = 0.0
        self.passes = asyncio.Event()
        self.passes.set()
        self.url = ""
        self._there = host, port
        self._ends: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Link]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.drop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> None:
        """End all connections, as the death of the node would."""
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.passes.wait()
        there, back = await asyncio.open_connection(*self._there)
        self._ends += writer, back
        self.sent.append(0)
        for source, sink, at in ((reader, back, len(self.sent) - 1), (there, writer, None)):
            self._tasks.add(task := asyncio.create_task(self._pass(source, sink, at)))
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, at: int | None) -> None:
        loop, due = asyncio.get_running_loop(), 0.0
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await self.passes.wait()
                if at is not None:
                    self.sent[at] += len(data)
                due = max(due + 1e-6, loop.time() + (self.delay_s if at is not None else 0.0))  # bytes keep their order
                loop.call_at(due, sink.write, data)
            sink.close()


@asynccontextmanager
async def a_node(
    bundle: Path, workers: tuple[int, ...], *, security: Security = NOBODY, **options: Any
) -> AsyncIterator[str]:
    given = {"relay": NOBODY, "inline_s": 0.0, **options}
    node = Node(bundle, NodeOptions(workers=workers, devices=(parse_device("cpu"),), **given))
    async with serving(node, Address(host="127.0.0.1", port=0), security) as url:
        yield url


@asynccontextmanager
async def a_linked_node(bundle: Path, workers: tuple[int, ...], **options: Any) -> AsyncIterator[Link]:
    async with a_node(bundle, workers, **options) as url:
        host, _, port = url.rpartition("/")[2].rpartition(":")
        async with Link(host, int(port)).open() as link:
            yield link


@asynccontextmanager
async def a_gateway(bundle: Path, *lines: str, security: Security = NOBODY, **options: Any) -> AsyncIterator[Gateway]:
    workers = parse_workers(lines, None, security)
    given = {"devices": workers.devices, "workers": workers, "backend": "remote", "patience": 0, "wait": "all"}
    gateway = Gateway(Bundle.open(bundle), GatewayOptions(**{**given, **options}))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop(drain_s=1)


def chain(*urls: str) -> tuple[str, ...]:
    """Lines of a tree in which each node hands inputs on to the next."""
    lines = [f"{','.join(map(str, part))}={url}" for part, url in zip(PARTS, urls, strict=True)]
    return lines[0], f"{lines[1]} via {urls[0]}", f"{lines[2]} via {urls[1]}", LARGE


async def a_tree(stack: AsyncExitStack, bundle: Path, **options: Any) -> tuple[Gateway, list[Link]]:
    """A gateway, and three nodes in a chain through which inputs go by now."""
    links = [await stack.enter_async_context(a_linked_node(bundle, part)) for part in PARTS]
    gateway = await stack.enter_async_context(a_gateway(bundle, *chain(*(link.url for link in links)), **options))
    await until_relayed(gateway, links)
    return gateway, links


async def until_relayed(gateway: Gateway, links: list[Link]) -> None:
    """Ask until an input of 3 kB goes to the first node alone."""
    async with asyncio.timeout(30):
        while True:
            before = directly(links)
            assert (await gateway.infer(inputs())).result.erasures == {}
            if all(now - then < SIZE for now, then in zip(directly(links), before, strict=True)):
                return
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a test has set in motion."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def all_live(gateway: Gateway) -> bool:
    return all(worker.state is State.LIVE for worker in gateway.workers)


def directly(links: list[Link]) -> list[int]:
    """Bytes that the second and the third node got from the gateway, which has connected to them first."""
    return [link.sent[0] for link in links[1:]]


def test_labels_and_scores_are_those_without_a_tree(tiny_bundle: Path) -> None:
    local = sensai_serve.load(tiny_bundle)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            gateway, links = await a_tree(stack, tiny_bundle)
            before = directly(links)
            for seed in range(20):
                reply = await gateway.infer(inputs(seed, 1 + seed % 5))
                assert reply.result.erasures == {}
                expected = local.predict_tensor(inputs(seed, 1 + seed % 5))
                assert np.array_equal(reply.answer.scores, expected.scores)
                assert (reply.answer.class_id == expected.class_id).all()
            assert all(now - then < 20 * SIZE / 4 for now, then in zip(directly(links), before, strict=True))
            assert len(links[1].sent) == 2  # the gateway's connection, and the first node's
            assert len(links[2].sent) == 3  # the second has one for each of the two that may send to it

    asyncio.run(test())


def test_a_straggler_below_a_relay_holds_up_no_other(tiny_bundle: Path) -> None:
    """Scores of a stream come as workers end, also through a node, and causes and traces pass through it."""

    async def test() -> None:
        slow = tuple(map(parse_fault, ("4:delay=300ms", "7:drop")))
        async with a_node(tiny_bundle, (0, 3)) as first, a_node(tiny_bundle, (1, 4, 7), faults=slow) as second:
            branches = (Branch(second, (1, 4, 7)),)
            async with a_stream(tiny_bundle, first, branches) as call:
                for message in in_pieces(tiny_bundle, 1, (0, 1, 4, 7)):
                    await call.write(message)
                order, failed = [], ""
                while len(order) < 3 or not failed:
                    reply = (await call.read()).infer_response
                    order += [output.name for output in reply.outputs]
                    failed = failed or reply.parameters["failed"].string_param
                    assert reply.id == "1"
                assert sorted(order[:2]) == ["scores-0", "scores-1"]
                assert order[2] == "scores-4"
                assert failed == "7:failed"

    asyncio.run(test())


def test_a_deadline_and_a_closed_request_end_below_too(tiny_bundle: Path) -> None:
    """The second worker is asked again before the first time it would answer: it is free by then."""

    async def test() -> None:
        slow = (parse_fault("1:delay=200ms"),)
        async with (
            a_node(tiny_bundle, (0,)) as first,
            a_node(tiny_bundle, (1,), faults=slow) as second,
            a_stream(tiny_bundle, first, (Branch(second, (1,)),)) as call,
        ):
            for ticket in range(1, 7):
                closed = [ticket - 1] if ticket > 1 else []
                for message in in_pieces(tiny_bundle, ticket, (1,), closed=closed, timeout_s=5.0):
                    await call.write(message)
            while (reply := (await call.read()).infer_response).id != "6":
                assert not reply.parameters["failed"].string_param  # none was full: those before had ended
            assert reply.outputs[0].name == "scores-1"

    asyncio.run(test())


def test_children_of_a_dead_relay_are_asked_within_the_request(tiny_bundle: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            gateway, links = await a_tree(stack, tiny_bundle)
            links[0].passes.clear()  # the input is lost on its way to the first node ...
            asked = asyncio.create_task(gateway.infer(inputs()))
            await asyncio.sleep(0.01)
            links[0].drop()  # ... which ends
            reply = await asked
            assert set(reply.result.erasures) == set(PARTS[0])
            links[0].passes.set()
            await until(lambda: all_live(gateway))
            await until_relayed(gateway, links)

    asyncio.run(test())


def test_children_of_a_silent_relay_are_asked_within_the_patience(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.backends.remote.grpc.QUIET_S", 0.2)
    monkeypatch.setattr("serving.backends.remote.grpc.SILENT_S", 0.3)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            gateway, links = await a_tree(stack, tiny_bundle)
            links[0].passes.clear()
            for _ in range(3):  # the first waits for the limit; the others find the children detached
                reply = await gateway.infer(inputs(), timeout_s=0.2)
                assert set(reply.result.erasures) == set(PARTS[0])
                assert reply.result.erasures[0] in (Cause.DEADLINE, Cause.DEAD)
            links[0].passes.set()
            await until(lambda: all_live(gateway))
            await until_relayed(gateway, links)

    asyncio.run(test())


def test_a_slow_relay_is_left_out_and_used_again(tiny_bundle: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            gateway, links = await a_tree(stack, tiny_bundle)
            for seed in range(10):  # what is usual is known by now
                await gateway.infer(inputs(seed))
            links[1].delay_s = 0.05
            before = links[2].sent[0]
            for seed in range(5):
                assert (await gateway.infer(inputs(seed))).result.erasures == {}
            assert links[2].sent[0] - before > SIZE  # the node below is sent to directly
            links[1].delay_s = 0.0
            await until_relayed(gateway, links)

    asyncio.run(test())


def test_a_child_that_its_relay_does_not_reach_is_asked_by_the_gateway(tiny_bundle: Path) -> None:
    """The relay's token is not one that the child lets in: it says so once, and all is answered."""

    async def test() -> None:
        async with AsyncExitStack() as stack:
            token = tiny_bundle.parent / "relay-token"
            token.write_text("open-sesame\n")
            token.chmod(0o600)
            shown = Security(token_file=token)
            first = await stack.enter_async_context(a_node(tiny_bundle, PARTS[0], security=shown))
            second = await stack.enter_async_context(a_node(tiny_bundle, PARTS[1], security=shown))
            third = await stack.enter_async_context(a_node(tiny_bundle, PARTS[2], security=shown))
            gateway = await stack.enter_async_context(
                a_gateway(tiny_bundle, *chain(first, second, third), security=shown)
            )
            for seed in range(10):
                assert (await gateway.infer(inputs(seed))).result.erasures == {}

    asyncio.run(test())


def test_small_inputs_are_sent_to_every_node(tiny_bundle: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            links = [await stack.enter_async_context(a_linked_node(tiny_bundle, part)) for part in PARTS]
            lines = chain(*(link.url for link in links))
            large = f"relay inputs from {SIZE + 1000} bytes in pieces of 1024"
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, *lines[:3], large))
            before = directly(links)
            await gateway.infer(inputs())
            assert all(now - then >= SIZE for now, then in zip(directly(links), before, strict=True))

    asyncio.run(test())


def test_a_node_that_does_not_relay_is_one_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(*, takes: str = "1", **options: Any) -> str:
        async with AsyncExitStack() as stack:
            monkeypatch.setattr("serving.node.servicer.TREE_VERSION", takes)
            nodes = [await stack.enter_async_context(a_node(tiny_bundle, part, **options)) for part in PARTS]
            with pytest.raises(InputError, match=r"^.*$") as refused:
                await stack.enter_async_context(a_gateway(tiny_bundle, *chain(*nodes)))
            return str(refused.value)

    assert "hands nothing on, expected sensai node --relay of this version" in asyncio.run(test(relay=None))
    assert "of this version" in asyncio.run(test(takes="2"))  # a node of a version to come


def test_links_are_measured_between_the_gateway_and_nodes_and_among_nodes(capsys, tiny_bundle: Path) -> None:
    """The file that is printed is one that `--links` takes."""

    async def test(**options: Any) -> tuple[int, str, str]:
        async with a_node(tiny_bundle, (0,)) as first, a_node(tiny_bundle, (1,), **options) as second:
            command = asyncio.to_thread(outcome, "place", str(tiny_bundle), second, first, "--measure")
            return *await command, first

    def outcome(*args: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([*args])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out or printed.err

    code, out, first = asyncio.run(test())
    assert code == 0
    found = tomllib.loads(out)
    assert [pair["between"][0] == "gateway" for pair in found["link"]] == [True, True, False]
    assert all(pair["mbit"] > 1 and 0 < pair["ms"] < 1000 for pair in found["link"])
    code, out, first = asyncio.run(test(relay=None))
    assert (code, out.count("\n")) == (2, 1)
    assert f"measure: expected a node with --relay to measure its link to {first}" in out


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


@asynccontextmanager
async def a_stream(bundle: Path, url: str, branches: tuple[Branch, ...] = ()) -> AsyncIterator[Any]:
    """A gateway's call to a node that is told to hand inputs on, and reaches the nodes below it."""
    digest = digest_of(Bundle.open(bundle).manifest)
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )()
        if branches:
            start = head("tiny", "1") + below(encode(branches), digest)
            await call.write(pb.ModelInferRequest.FromString(start))
            for ticket in range(100, 1000):  # until the node has connected
                for message in in_pieces(bundle, ticket, branches[0].workers):
                    await call.write(message)
                answered, failed = 0, ""
                while answered + len(failed.split(",")) - (not failed) < len(branches[0].workers):
                    reply = (await call.read()).infer_response
                    answered += len(reply.outputs)
                    failed += "," * bool(failed) + reply.parameters["failed"].string_param
                    failed = failed.strip(",")
                if "dead" not in failed:
                    break
        yield call
        call.cancel()


def in_pieces(
    bundle: Path, ticket: int, workers: tuple[int, ...], closed: Sequence[int] = (), timeout_s: float | None = None
) -> list[pb.ModelInferRequest]:
    """One input, cut, as a gateway sends it."""
    pieces: list[bytes] = []
    cut(EncodedInput(inputs(ticket, 2), Bundle.open(bundle).manifest.inputs, timeout_s), 500).follow(pieces.append)
    start = head("tiny", "1", workers) + particulars(ticket, closed, timeout_s, pieces=len(pieces))
    after = head("tiny", "1") + particulars(ticket, pieces=0)
    messages = [(after if at else start) + raw_contents(len(piece)) + piece for at, piece in enumerate(pieces)]
    return [pb.ModelInferRequest.FromString(message) for message in messages]


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
