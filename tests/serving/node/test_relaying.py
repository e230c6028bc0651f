"""Nodes that hand inputs on: labels as without a tree, lost and slow relays, and links that are measured."""

from __future__ import annotations

import asyncio
import tomllib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import until
from relay_nodes import (
    PARTS,
    SIZE,
    a_gateway,
    a_linked_node,
    a_node,
    a_stream,
    a_tree,
    all_live,
    chain,
    directly,
    in_pieces,
    inputs,
    until_relayed,
)

import sensai_serve
from sensai_serve.cli.main import main
from sensai_serve.errors import InputError
from serving.backends import Cause
from serving.backends.remote.branch import Branch
from serving.runtime.endpoint import Security
from serving.runtime.faults import parse_fault


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
                reply = await gateway.infer(inputs(), timeout_s=0.6)
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
