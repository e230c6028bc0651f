"""Sessions and how they are run: bound memory, threads, CUDA graphs and their absence, as far as a CPU can tell."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks.subjects.noop import noop_network
from sensai_serve.errors import BundleError, DeviceError
from sensai_serve.input_spec import InputSpec
from serving.runtime.devices import Device
from serving.runtime.io_binding import COPIED_BYTES, BoundRunner, PlainRunner
from serving.runtime.session import Session

SHAPE = (3, 16, 16)
LARGE = (3, 64, 64)
CARD = Device("cuda", 0, graphs=True)


def inputs(n: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def open_session(device: Device = Device("cpu"), shape: tuple[int, ...] = SHAPE) -> Session:  # noqa: B008
    return Session(noop_network(shape, 10, seed=1), device, [InputSpec(shape)], "the network")


def expected(x: np.ndarray, real: type = ort.InferenceSession) -> np.ndarray:
    session = real(noop_network(x.shape[1:], 10, seed=1), providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"input": x})[0]


@pytest.mark.parametrize(("shape", "kind"), [(SHAPE, BoundRunner), (LARGE, PlainRunner)])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_one_input_and_batches_of_any_size(shape: tuple[int, ...], kind: type, n: int) -> None:
    assert (4 * np.prod(LARGE) > COPIED_BYTES) and (4 * np.prod(SHAPE) <= COPIED_BYTES)
    session, x = open_session(shape=shape), inputs(n, shape)
    assert isinstance(session.runner, kind)
    np.testing.assert_array_equal(session.run(x), expected(x))


def test_scores_are_the_caller_s_own() -> None:
    session = open_session()
    first, second = inputs(1, seed=1), inputs(1, seed=2)
    kept = session.run(first)
    session.run(second)
    session.warm()
    np.testing.assert_array_equal(kept, expected(first))


@pytest.mark.parametrize("shape", [SHAPE, LARGE])
def test_single_inputs_are_run_from_where_they_lie(shape: tuple[int, ...]) -> None:
    places, session = [inputs(1, shape, seed) for seed in range(3)], open_session(shape=shape)
    in_place = session.in_place(places)
    assert in_place is not None
    for seed in range(6):
        place = seed % 3
        places[place][:] = inputs(1, shape, 10 + seed)
        np.testing.assert_array_equal(in_place.run(place), expected(places[place]))
    np.testing.assert_array_equal(session.run(inputs(2, shape)), expected(inputs(2, shape)))
    assert session.in_place([]) is None


def test_a_session_may_be_run_by_several_threads_at_a_time() -> None:
    session = open_session()
    xs = [inputs(1 + seed % 2, seed=seed) for seed in range(200)]
    wanted = [expected(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(session.run, xs), wanted, strict=True):
            np.testing.assert_array_equal(got, want)


def test_inputs_of_another_shape_are_refused_not_cast() -> None:
    session = open_session()
    with pytest.raises(Exception, match=r"[Ii]nvalid"):
        session.run(inputs(1, (3, 16, 15)))


@pytest.mark.parametrize("data", [b"", b"no network", noop_network(SHAPE, 10, seed=0)])
def test_what_cannot_be_run_is_one_line(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^the network cannot be run on cpu: [^\n]+$"):
        Session(data, Device("cpu"), [InputSpec(SHAPE, name="other")], "the network")


class Card(ort.InferenceSession):
    """Stands in for ONNX Runtime with a card: takes the same options, computes on the CPU."""

    refuses = fails = False
    opened: list[dict[str, str]] = []  # noqa: RUF012

    def __init__(self, data: bytes, options: ort.SessionOptions, providers: list) -> None:
        self.options = providers[0][1]
        self.opened.append(self.options)
        self.graph = self.options.get("enable_cuda_graph") == "1"
        if self.refuses and self.graph:
            raise RuntimeError("This session cannot use the graph capture feature\nsecond line")
        super().__init__(data, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def run_with_iobinding(self, binding, run_options=None) -> None:
        if self.fails and self.graph:
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
        super().run_with_iobinding(binding, run_options)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> type[Card]:
    from_numpy = ort.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(ort, "InferenceSession", Card)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda array, *place: from_numpy(array.copy()))
    monkeypatch.setattr(Card, "opened", [])
    return Card


def test_a_card_is_run_through_its_own_memory(card: type[Card], caplog: pytest.LogCaptureFixture) -> None:
    session = open_session(CARD)
    for n in (1, 3, 1):
        x = inputs(n, seed=n)
        np.testing.assert_array_equal(session.run(x), expected(x))
    assert [options["enable_cuda_graph"] for options in card.opened] == ["1"]
    assert caplog.records == []


@pytest.mark.parametrize("how", ["refuses", "fails"])
def test_without_a_graph_a_card_goes_on_and_the_log_says_why(
    card: type[Card], how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(card, how, True)
    with caplog.at_level(logging.WARNING):
        session = open_session(CARD)
    x = inputs(1)
    np.testing.assert_array_equal(session.run(x), expected(x))
    assert ["enable_cuda_graph" in options for options in card.opened] == [True, False]
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("the network runs on cuda:0+graphs without a CUDA graph: ")
    assert "\n" not in message


def test_a_card_that_onnxruntime_left_is_an_error(card: type[Card], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="the network runs on CPUExecutionProvider, expected CUDAExecutionProvider"):
        open_session(CARD)
