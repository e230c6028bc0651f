"""Workers on other servers: they answer as the local ones do, are found again when lost, and what is wrong is said."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sensai_serve
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from serving.address import Address
from serving.engine.gateway import Gateway
from serving.engine.health import State
from serving.engine.options import GatewayOptions
from serving.node.node import Node, NodeOptions
from serving.node.server import serving as node_serving
from serving.placement.worker_map import parse_workers
from serving.runtime.devices import parse_device
from serving.runtime.endpoint import Security
from serving.runtime.faults import parse_fault

LOOPBACK = Address(host="127.0.0.1", port=0)
NOBODY = Security()


def inputs(seed: int = 0, n: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3, 8, 8)).astype(np.float32)


@asynccontextmanager
async def a_node(bundle: Path, *workers: int) -> AsyncIterator[str]:
    node = Node(bundle, NodeOptions(workers=workers or None, devices=(parse_device("cpu"),)))
    async with node_serving(node, LOOPBACK, NOBODY) as url:
        yield url


@asynccontextmanager
async def a_gateway(bundle: Path, *places: str, security: Security = NOBODY, **options: Any) -> AsyncIterator[Gateway]:
    workers = parse_workers(places, None, security)
    given = {"devices": workers.devices, "workers": workers, "backend": "remote", "patience": 0, **options}
    gateway = Gateway(Bundle.open(bundle), GatewayOptions(**given))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop(drain_s=1)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a test has set in motion."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_some_here_some_there(tiny_bundle: Path) -> None:
    local = sensai_serve.load(tiny_bundle)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle, 0, 3, 6, 9))
            second = await stack.enter_async_context(a_node(tiny_bundle))
            places = (f"0,3,6,9={first}", f"1-2={second}", f"4={second}/tiny-04", "*=cpu")
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, *places, wait="all"))
            for seed in range(30):
                reply = await gateway.infer(inputs(seed, 1 + seed % 3))
                assert reply.answer.missing == ()
                expected = local.predict_tensor(inputs(seed, 1 + seed % 3))
                assert np.array_equal(reply.answer.scores, expected.scores)
                assert (reply.answer.class_id == expected.class_id).all()

    asyncio.run(test())


def test_several_gateways_take_turns_at_one_node(tiny_bundle: Path) -> None:
    async def test() -> None:
        slow = (parse_fault("*:delay=3ms"),)
        node = Node(tiny_bundle, NodeOptions(devices=(parse_device("cpu"),), faults=slow))
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(node_serving(node, LOOPBACK, NOBODY))
            places = (f"*={url}", f"4={url}/tiny-04")
            gateways = [await stack.enter_async_context(a_gateway(tiny_bundle, *places, wait="all")) for _ in range(4)]
            asked = [gateway.infer(inputs(seed)) for seed in range(8) for gateway in gateways]
            for reply in await asyncio.gather(*asked):
                assert reply.result.erasures == {}

    asyncio.run(test())


def test_two_tritons_and_a_node_answer_as_this_process_does(
    run_triton, triton_packages: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Labels equal image by image; the Triton repository is the one that `sensai export --triton` writes."""
    export = ["export", str(tiny_bundle), "--triton", str(tmp_path / "models"), "--triton-backend", "python"]
    with pytest.raises(SystemExit) as ended:
        main([*export, "--site-packages", str(triton_packages)])
    assert ended.value.code == 0
    local = sensai_serve.load(tiny_bundle)

    async def test(first: Any, second: Any) -> None:
        async with a_node(tiny_bundle, 2, 5, 8) as node:
            places = (
                f"0,3=grpc://{first.grpc}",
                f"6,9=http://{first.http}",
                f"1,4,7=grpc://{second.grpc}",
                f"2,5,8={node}",
            )
            async with a_gateway(tiny_bundle, *places) as gateway:
                for seed in range(100):
                    reply = await gateway.infer(inputs(seed), wait="all" if seed % 2 else None)
                    assert reply.result.erasures == {}
                    assert (reply.answer.class_id == local.predict_tensor(inputs(seed)).class_id).all()

    with run_triton(tmp_path / "models") as one, run_triton(tmp_path / "models") as two:
        asyncio.run(test(one, two))


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


class Way:
    """A TCP relay to a server that can be cut: nothing passes any more, and nobody is told."""

    def __init__(self, url: str) -> None:
        self._host, self._port = url.removeprefix("grpc://").split(":")
        self.open = asyncio.Event()
        self.open.set()
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Way]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.open.wait()
        there, back = await asyncio.open_connection(self._host, int(self._port))
        for source, sink in ((reader, back), (there, writer)):
            self._tasks.add(asyncio.create_task(self._pass(source, sink)))

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self.open.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()


def test_a_host_that_is_cut_off_is_lost_in_time_and_back_after_healing(tiny_bundle: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle))
            second = await stack.enter_async_context(a_node(tiny_bundle, 1, 4, 7))
            way = await stack.enter_async_context(Way(second).serving())
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, f"*={first}", f"1,4,7={way.url}"))
            way.open.clear()
            await until(lambda: gateway.workers[4].state is State.DEAD)
            reply = await gateway.infer(inputs(), wait="all")
            assert reply.answer.missing == (1, 4, 7)
            way.open.set()
            await until(lambda: {gateway.workers[w].state for w in (1, 4, 7)} == {State.LIVE})
            assert (await gateway.infer(inputs(), wait="all")).answer.missing == ()

    asyncio.run(test())


def test_a_gateway_starts_without_a_host_and_takes_it_in_when_it_comes(tiny_bundle: Path, caplog) -> None:
    local = sensai_serve.load(tiny_bundle)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle))
            second = await stack.enter_async_context(a_node(tiny_bundle, 1, 4, 7))
            way = await stack.enter_async_context(Way(second).serving())
            way.open.clear()
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, f"*={first}", f"1,4,7={way.url}"))
            assert gateway.ready
            assert f"every class has other workers: {way.url}" in caplog.text
            assert [w for w in range(10) if gateway.workers[w].state is State.DEAD] == [1, 4, 7]
            reply = await gateway.infer(inputs(), wait="all")
            assert reply.answer.missing == (1, 4, 7)
            assert reply.answer.class_id == local.predict_tensor(inputs()).class_id
            way.open.set()
            await until(lambda: {gateway.workers[w].state for w in (1, 4, 7)} == {State.LIVE})
            reply = await gateway.infer(inputs(), wait="all")
            assert np.array_equal(reply.answer.scores, local.predict_tensor(inputs()).scores)

    asyncio.run(test())


def test_a_host_that_comes_late_with_another_bundle_is_not_taken(tiny_bundle: Path, make_bundle, caplog) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(a_node(tiny_bundle))
            other = await stack.enter_async_context(a_node(make_bundle(seed=7), 1, 4, 7))
            way = await stack.enter_async_context(Way(other).serving())
            way.open.clear()
            gateway = await stack.enter_async_context(a_gateway(tiny_bundle, f"*={first}", f"1,4,7={way.url}"))
            way.open.set()
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


def test_a_new_bundle_answers_beside_the_old_one(make_bundle, tmp_path: Path) -> None:
    old, new = make_bundle(seed=1), make_bundle(seed=2)
    shutil.copytree(old, tmp_path / "bundle")

    async def test() -> None:
        node = Node(tmp_path / "bundle", NodeOptions(devices=(parse_device("cpu"),)))
        async with (
            node_serving(node, LOOPBACK, NOBODY) as url,
            a_gateway(old, f"*={url}", f"3={url}/tiny-03", wait="all") as before,
        ):
            (tmp_path / "bundle").rename(tmp_path / "old")
            shutil.copytree(new, tmp_path / "bundle")
            await node.reload()
            async with a_gateway(new, f"*={url}", f"3={url}/tiny-03", wait="all") as after:
                for seed in range(10):
                    for gateway, bundle in ((before, old), (after, new)):
                        expected = sensai_serve.load(bundle).predict_tensor(inputs(seed))
                        assert np.array_equal((await gateway.infer(inputs(seed))).answer.scores, expected.scores)

    asyncio.run(test())


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            ("*=grpc://127.0.0.1:1",),
            r"^grpc://127.0.0.1:1 cannot be reached \(Connection refused\); no other worker of class '.+' is there$",
        ),
        (
            ("0,1,7,9=grpc://127.0.0.1:1", "*={node}"),
            r"cannot be reached .*; no other worker of class '\w+-?\w*' is there$",
        ),
        (("*=grpc://nowhere.invalid:1",), r"^grpc://nowhere.invalid:1 cannot be reached \("),
        (("*=http://127.0.0.1:1",), r"^http://127.0.0.1:1 cannot be reached \("),
        (("*={http}",), r"^{http} cannot be reached \("),
        (("*={https}",), r"^{https} (fails the TLS handshake|cannot be reached) \("),
        (("*={other}",), r"^worker 0: {other} serves no model 'tiny-00'$"),
        (("*={same}",), r"^worker 0: tiny-00 at {same} runs another subnet \(version 1: \w{12}...\), expected SHA-256"),
        (("0={node}/tiny-01", "*={node}"), r"^worker 0: tiny-01 at {node} is worker 1, expected worker 0$"),
        (("0={node}/tiny-22", "*={node}"), r"^worker 0: {node} serves no model 'tiny-22'$"),
        (
            ("0={other}/other-00", "*={node}"),
            r"^worker 0: other-00 at {other} belongs to the bundle 'other', expected 'tiny'$",
        ),
        (("0={some}", "*={some}"), r"^worker 0: {some} serves no model 'tiny-00'$"),
        (("*={tls}",), r"^{tls} (cannot be trusted|fails the TLS handshake|cannot be reached)"),
        (("0-8={node}",), r"^worker 9: listed nowhere"),
        (("*={node}", "0-10=cpu"), r"^worker 10 is listed, expected one of 0 to 9$"),
    ],
)
def test_what_is_wrong_is_said_before_serving_starts(make_bundle, places: tuple[str, ...], message: str) -> None:
    tiny = make_bundle()

    async def test() -> None:
        async with AsyncExitStack() as stack:
            urls = {
                "node": await stack.enter_async_context(a_node(tiny)),
                "some": await stack.enter_async_context(a_node(tiny, 1, 2)),
                "same": await stack.enter_async_context(a_node(make_bundle(seed=7))),
                "other": await stack.enter_async_context(a_node(make_bundle(name="other"))),
            }
            urls |= {name: urls["node"].replace("grpc", name) for name in ("http", "https")}
            urls["tls"] = urls["node"].replace("grpc://", "grpcs://")
            given = [place.format(**urls) for place in places]
            expected = message
            for name, url in urls.items():
                expected = expected.replace(f"{{{name}}}", url)
            with pytest.raises(sensai_serve.errors.SensaiError, match=expected) as refused:
                async with a_gateway(tiny, *given):
                    pass
            assert "\n" not in str(refused.value)

    asyncio.run(test())


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
