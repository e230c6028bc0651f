"""The fast path of grpc-native gives the replies and counts of the usual way, and leaves to it what is uncommon."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from bundle_fixtures import write_bundle
from fast_path_fixtures import INLINE, MODELS, OUTPUTS, counted, leave_nothing_to_chance, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from pygrpc_native import EVENT_CALL, EVENT_CANCEL
from tritonclient.grpc import service_pb2 as pb

from sensai_serve.protobuf import bytes_field
from serving.engine.workers.health import State
from serving.security import reloading
from serving.transports.grpc_native.calls import NativeCalls
from serving.transports.grpc_native.fast_path import GrpcFastPath

LISTEN = ("grpc-native=127.0.0.1:0",)
_odd = itertools.count()


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call that the fast path was given, whether it answered it."""
    found, answer = list[bool](), GrpcFastPath.answer

    def noted(path: GrpcFastPath, *call: Any) -> bool:
        fast = answer(path, *call)
        found.append(fast)
        return fast

    monkeypatch.setattr(GrpcFastPath, "answer", noted)
    leave_nothing_to_chance(monkeypatch)
    return found


Metadata = tuple[tuple[str, str], ...]


class Calls:
    """Calls of ModelInfer over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def ask(self, message: bytes, metadata: Metadata = ()) -> pb.ModelInferResponse:
        return pb.ModelInferResponse.FromString(self._infer(message, metadata=metadata, timeout=30))

    def usual(self, message: bytes) -> pb.ModelInferResponse:
        """Ask with metadata that no call had before: it goes the usual way."""
        return self.ask(message, (("x-odd", str(next(_odd))),))

    def refused(self, message: bytes, metadata: Metadata = ()) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(message, metadata)
        return caught.value.code(), caught.value.details()


@contextmanager
def calls(server: Any) -> Iterator[Calls]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield Calls(channel)


def request_of(tensor: np.ndarray, *, wait: str = "", outputs: tuple[str, ...] = (), **more: Any) -> bytes:
    request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[tensor.tobytes()], **more)
    request.inputs.add(name="input", datatype="FP32", shape=tensor.shape)
    for name in outputs:
        request.outputs.add(name=name)
    if wait:
        request.parameters["wait"].string_param = wait
    message: bytes = request.SerializeToString()
    return message


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("wait", ["", "all"])
def test_replies_equal_those_of_the_usual_way(
    model: str, wait: str, run_server: Any, tmp_path: Path, answered: list[bool]
) -> None:
    options = MODELS[model]
    bundle = write_bundle(tmp_path / "tiny", image=None, **options)
    with run_server(bundle, inference=INLINE, listen=LISTEN) as server, calls(server) as client:
        order = np.random.default_rng(2)
        for outputs in [(), *(tuple(order.permutation(OUTPUTS)[:n]) for n in (1, 2, 3, 4, 5))]:
            messages = [
                request_of(tensor, wait=wait, outputs=outputs)
                for tensor in tensors(8, (1, *options.get("shape", (3, 8, 8))))
            ]
            client.ask(messages[0])
            answered.clear()
            fast = [client.ask(message) for message in messages]
            assert answered == [True] * len(messages)
            assert fast == [client.usual(message) for message in messages]
            assert answered == [True] * len(messages) + [False] * len(messages)


@pytest.mark.parametrize("model", ["one worker", "copies that differ"])
def test_counts_equal_those_of_the_usual_way(model: str, run_server: Any, tmp_path: Path, answered: list[bool]) -> None:
    bundle = write_bundle(tmp_path / "tiny", image=None, **MODELS[model])
    found = []
    for fast in (True, False):
        with run_server(bundle, inference=INLINE, listen=LISTEN) as server, calls(server) as client:
            for tensor in tensors(40):
                (client.ask if fast else client.usual)(request_of(tensor))
            found.append(counted(server))
    assert answered[:40].count(True) == 39
    assert found[0] == found[1]


def test_what_is_no_common_call_goes_the_usual_way(run_server: Any, tiny_bundle: Path, answered: list[bool]) -> None:
    with run_server(tiny_bundle, inference=INLINE, listen=LISTEN) as server, calls(server) as client:
        first, second = tensors(2)
        common, bad = request_of(first), second.copy()
        bad.flat[100] = np.nan
        expected = client.usual(common)
        client.ask(common)
        answered.clear()
        assert client.ask(request_of(first, id="7")) == pb.ModelInferResponse(id="7", **_fields(expected))
        # The bytes in front are those of a common call, but its last field is no input.
        hidden = request_of(first) + bytes_field(99, common[-len(first.tobytes()) - 3 :])
        for _ in range(3):
            assert client.ask(hidden) == expected
        assert client.ask(common, (("x-request-id", "7"),)) == expected
        assert "NaN or infinity" in client.refused(request_of(bad))[1]
        assert answered == [False] * 6
        assert client.ask(common) == expected
        assert answered[-1]
        server.repository.get("tiny").workers[3].state = State.DEAD
        assert client.ask(request_of(first, wait="all")).parameters["missing"].string_param == "3"
        client.ask(common)
        assert answered[-2:] == [False, False]


def test_what_nobody_foresaw_is_answered_and_says_nothing(
    run_server: Any, tiny_bundle: Path, answered: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def answer(self, *_: Any) -> None:
            raise ZeroDivisionError("secret")

    message = request_of(*tensors(1))
    with run_server(tiny_bundle, inference=INLINE, listen=LISTEN) as server, calls(server) as client:
        client.ask(message)
        server.repository.get("tiny").at_once = Broken()
        assert client.refused(message) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "secret" in caplog.text


def _fields(reply: pb.ModelInferResponse) -> dict[str, Any]:
    return {field.name: value for field, value in reply.ListFields()}


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 120), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_damaged_fronts_are_answered_as_without_a_fast_path(
    fast_and_slow: tuple[Calls, Calls], at: int, byte: int, cut: int
) -> None:
    (tensor,) = tensors(1)
    message = bytearray(request_of(tensor, outputs=("class_id", "scores")))
    message[at % (len(message) - tensor.nbytes)] = byte
    sent = bytes(message[: len(message) - cut])
    outcomes = []
    for client in fast_and_slow:
        try:
            outcomes.append(client.ask(sent))
        except grpc.RpcError as error:
            outcomes.append((error.code(), error.details()))
    assert outcomes[0] == outcomes[1]


@pytest.fixture(scope="module")
def fast_and_slow(run_server: Any, tiny_bundle: Path) -> Iterator[tuple[Calls, Calls]]:
    """One server, over grpc-native where a common call is known, and over grpcio."""
    both = (*LISTEN, "grpc=127.0.0.1:0")
    with run_server(tiny_bundle, inference=INLINE, listen=both) as server:
        native, usual = (url.partition("://")[2] for url in server.urls[1:])
        with grpc.insecure_channel(native) as one, grpc.insecure_channel(usual) as other:
            for tensor in tensors(3):
                Calls(one).ask(request_of(tensor, outputs=("class_id", "scores")))
            yield Calls(one), Calls(other)


def test_another_model_of_that_name_answers_as_soon_as_it_is_loaded(
    run_server: Any, tmp_path: Path, answered: list[bool]
) -> None:
    models = tmp_path / "models"
    write_bundle(models / "tiny", seed=1)
    write_bundle(tmp_path / "next", seed=2)
    message = request_of(*tensors(1))
    with (
        run_server(models / "tiny", repository=models, inference=INLINE, listen=LISTEN) as server,
        calls(server) as client,
    ):
        before = client.ask(message)
        assert client.ask(message) == before
        assert answered == [False, True]
        shutil.rmtree(models / "tiny")
        shutil.copytree(tmp_path / "next", models / "tiny")
        with urlopen(f"{server.url}/v2/repository/models/tiny/load", data=b"{}") as reply:
            assert reply.status == 200
        after = client.ask(message)
        assert before != after == client.ask(message)
        assert answered[2:] == [False, True]
        with urlopen(f"{server.url}/v2/repository/models/tiny/unload", data=b"{}") as reply:
            assert reply.status == 200
        assert client.refused(message)[0] is grpc.StatusCode.NOT_FOUND


def test_a_token_that_is_not_valid_any_more_is_refused(
    run_server: Any, tiny_bundle: Path, tmp_path: Path, answered: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "PERIOD_S", 0.02)
    tokens = tmp_path / "tokens"
    replace(tokens, "one-0123456789abcdef predict\n")
    shown, other = ((("authorization", f"Bearer {token}-0123456789abcdef"),) for token in ("one", "two"))
    message = request_of(*tensors(1))
    with (
        run_server(tiny_bundle, clients={"tokens": tokens}, inference=INLINE, listen=LISTEN) as server,
        calls(server) as client,
    ):
        for _ in range(3):
            client.ask(message, shown)
        assert answered == [False, True, True]
        for wrong in ((), other):
            assert client.refused(message, wrong)[0] is grpc.StatusCode.UNAUTHENTICATED
        replace(tokens, "two-0123456789abcdef predict\n")
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                client.ask(message, other)
                break
            except grpc.RpcError:
                pass
        answered.clear()
        assert client.refused(message, shown)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert answered == [False]


def replace(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(file)


def test_nothing_is_kept_of_calls_that_are_cancelled_as_soon_as_they_come() -> None:
    async def test() -> None:
        calls = NativeCalls(Mock(), Mock(), Mock(), Mock(**{"answer.return_value": False}), Mock(), 0)
        details = ((), "client", None)
        calls._take([(EVENT_CALL, 7, 0, b"", False, details), (EVENT_CANCEL, 7, 0, b"", False, details)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not calls._tasks

    asyncio.run(test())


def test_calls_that_are_held_open_when_the_server_stops_are_answered(run_server: Any, tiny_bundle: Path) -> None:
    (tensor,) = tensors(1)
    slow = {"faults": "*:delay=0.5s", "allow_faults": True}
    with run_server(tiny_bundle, inference=slow, listen=LISTEN) as server:
        channel = grpc.insecure_channel(server.grpc)
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(request_of(tensor), timeout=30)
        begun = time.monotonic() + 30
        while not server.repository.get("tiny").admission.in_flight and time.monotonic() < begun:
            pass
    assert pb.ModelInferResponse.FromString(call.result()).model_name == "tiny"
    channel.close()
