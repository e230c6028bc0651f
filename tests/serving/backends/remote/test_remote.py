"""Workers on other servers: they answer as the local ones do, are found again when lost, and what is wrong is said."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remote_workers import LOOPBACK, NOBODY, a_gateway, a_node, inputs

import sensai_serve
from sensai_serve.cli.main import main
from serving.node.node import Node
from serving.node.options import NodeOptions
from serving.node.server import serving as node_serving
from serving.runtime.devices import parse_device
from serving.runtime.faults import parse_fault


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
