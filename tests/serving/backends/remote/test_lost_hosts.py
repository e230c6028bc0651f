"""Hosts that end, are cut off, come late or come back as another: what requests notice of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import until
from relay_nodes import Link
from remote_workers import LOOPBACK, NOBODY, a_gateway, a_node, inputs

import sensai_serve
from serving.address import Address
from serving.engine.workers.health import State
from serving.node.node import Node
from serving.node.options import NodeOptions
from serving.node.server import serving as node_serving
from serving.runtime.devices import parse_device


def linked(url: str) -> AbstractAsyncContextManager[Link]:
    """A link to a node, which can be cut."""
    host, _, port = url.removeprefix("grpc://").rpartition(":")
    return Link(host, int(port)).open()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_host_that_ends_under_load_fails_no_request_and_is_back_by_itself(
    node_process: Any, tiny_bundle: Path, end: int
) -> None:
    local = sensai_serve.load(tiny_bundle)

    async def test(process: subprocess.Popen[str], url: str) -> None:
        async with a_node(tiny_bundle) as first, a_gateway(tiny_bundle, f"*={first}", f"1,4,7={url}") as gateway:

            async def ask(seed: int) -> None:
                reply = await gateway.infer(inputs(seed))
                if reply.answer.complete:
                    assert (reply.answer.class_id == local.predict_tensor(inputs(seed)).class_id).all()

            async def ask_until(states: set[State]) -> None:
                seed = 0
                async with asyncio.timeout(30):
                    while {gateway.workers[w].state for w in (1, 4, 7)} != states:
                        await ask(seed := seed + 1)
                        await asyncio.sleep(0)

            await ask_until({State.LIVE})
            process.send_signal(end)
            await ask_until({State.DEAD})
            process.wait(30)
            port = int(url.rpartition(":")[2])
            again = Node(tiny_bundle, NodeOptions(workers=(1, 4, 7), devices=(parse_device("cpu"),)))
            async with node_serving(again, Address(host="127.0.0.1", port=port), NOBODY):
                await ask_until({State.LIVE})
                assert (await gateway.infer(inputs(), wait="all")).answer.missing == ()

    with node_process(tiny_bundle, "--workers", "1,4,7", "--grpc", "127.0.0.1:0") as (process, url):
        asyncio.run(test(process, url))


def test_a_host_that_is_cut_off_is_lost_in_time_and_back_after_healing(tiny_bundle: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle))
            second = await stack.enter_async_context(a_node(tiny_bundle, 1, 4, 7))
            link = await stack.enter_async_context(linked(second))
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, f"*={first}", f"1,4,7={link.url}"))
            link.passes.clear()
            await until(lambda: gateway.workers[4].state is State.DEAD)
            reply = await gateway.infer(inputs(), wait="all")
            assert reply.answer.missing == (1, 4, 7)
            link.passes.set()
            await until(lambda: {gateway.workers[w].state for w in (1, 4, 7)} == {State.LIVE})
            assert (await gateway.infer(inputs(), wait="all")).answer.missing == ()

    asyncio.run(test())


def test_a_gateway_starts_without_a_host_and_takes_it_in_when_it_comes(tiny_bundle: Path, caplog) -> None:
    local = sensai_serve.load(tiny_bundle)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle))
            second = await stack.enter_async_context(a_node(tiny_bundle, 1, 4, 7))
            link = await stack.enter_async_context(linked(second))
            link.passes.clear()
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, f"*={first}", f"1,4,7={link.url}"))
            assert gateway.ready
            assert f"every class has other workers: {link.url}" in caplog.text
            assert [w for w in range(10) if gateway.workers[w].state is State.DEAD] == [1, 4, 7]
            reply = await gateway.infer(inputs(), wait="all")
            assert reply.answer.missing == (1, 4, 7)
            assert reply.answer.class_id == local.predict_tensor(inputs()).class_id
            link.passes.set()
            await until(lambda: {gateway.workers[w].state for w in (1, 4, 7)} == {State.LIVE})
            reply = await gateway.infer(inputs(), wait="all")
            assert np.array_equal(reply.answer.scores, local.predict_tensor(inputs()).scores)

    asyncio.run(test())


def test_a_host_that_comes_late_with_another_bundle_is_not_taken(tiny_bundle: Path, make_bundle, caplog) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle))
            other = await stack.enter_async_context(a_node(make_bundle(seed=7), 1, 4, 7))
            link = await stack.enter_async_context(linked(other))
            link.passes.clear()
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, f"*={first}", f"1,4,7={link.url}"))
            link.passes.set()
            await until(lambda: "runs another subnet" in caplog.text)
            assert {gateway.workers[w].state for w in (1, 4, 7)} == {State.DEAD}

    asyncio.run(test())


def test_a_process_that_dies_at_a_node_is_told_of_and_comes_back(tiny_bundle: Path) -> None:
    async def test() -> None:
        options = NodeOptions(workers=(1, 4, 7), devices=(parse_device("cpu"),), backend="process")
        node = Node(tiny_bundle, options)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle))
            before = children()
            url = await stack.enter_async_context(node_serving(node, LOOPBACK, NOBODY))
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, f"*={first}", f"1,4,7={url}"))
            for pid in children() - before:
                os.kill(pid, signal.SIGKILL)
            seed = 0
            async with asyncio.timeout(30):
                while [gateway.workers[w].restarts for w in (1, 4, 7)] != [1, 1, 1]:
                    await gateway.infer(inputs(seed := seed + 1))
            assert (await gateway.infer(inputs(), wait="all")).answer.missing == ()

    asyncio.run(test())


def children() -> set[int]:
    """Processes that this one has started and that still run."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        found.update(map(int, file.read_text().split()))
    return found


def test_another_bundle_in_place_of_a_lost_one_is_not_taken(tiny_bundle: Path, make_bundle, caplog) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle))
            async with a_node(tiny_bundle, 4) as url:
                gateway = await stack.enter_async_context(a_gateway(tiny_bundle, f"*={first}", f"4={url}"))
            await until(lambda: gateway.workers[4].state is State.DEAD)
            other = Node(make_bundle(seed=9), NodeOptions(workers=(4,), devices=(parse_device("cpu"),)))
            address = Address(host="127.0.0.1", port=int(url.rpartition(":")[2]))
            await stack.enter_async_context(node_serving(other, address, NOBODY))
            await until(lambda: "worker 4 is down: worker 4: tiny-04 at" in caplog.text)
            assert gateway.workers[4].state is State.DEAD

    asyncio.run(test())
