"""One suite for every backend: inputs of every datatype, of dynamic axes, several of them, and texts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from backend_fixtures import BACKENDS, run, serving
from input_fixtures import KINDS, drawn, write_pooled_bundle

import sensai_serve
from sensai_serve.errors import RequestError
from sensai_serve.input_spec import DATATYPES, DYNAMIC, InputSpec
from sensai_serve.tensors import NamedInputs
from sensai_serve.tokenizer import Texts

EVERY = tuple(
    InputSpec((DYNAMIC, 3), name=dtype, dtype=dtype, maximum=(12,), vocabulary=9 if dtype == "INT64" else None)
    for dtype in DATATYPES
)
"""An input of every datatype, all in one network."""
CASES = [("ort", kind) for kind in KINDS]
CASES += [(backend, kind) for backend in BACKENDS if backend != "ort" for kind in ("tokens", "every datatype")]


@pytest.mark.parametrize(("backend", "kind"), CASES)
def test_answers_are_those_of_the_bundle_in_process(
    pooled_bundles: dict[str, Path], tmp_path: Path, backend: str, kind: str
) -> None:
    if kind in KINDS:
        bundle, specs = pooled_bundles[kind], KINDS[kind]
    else:
        bundle, specs = write_pooled_bundle(tmp_path / "every", EVERY), EVERY
    local = sensai_serve.load(bundle)
    lengths = (5, 1, 12, 2) if any(spec.maximum for spec in specs) else (1, 1)

    async def test() -> None:
        async with serving(bundle, backend=backend, wait="all", patience=0, max_batch=3) as gateway:
            for seed, length in enumerate(lengths):
                given = drawn(specs, 1 + seed % 3, seed, length)
                reply = await gateway.infer(given)
                assert np.allclose(reply.answer.scores, local.predict_tensor(given).scores, atol=1e-6)
                assert reply.answer.missing == (), reply.erasures
            together = [drawn(specs, 1, seed, lengths[seed % len(lengths)]) for seed in range(12)]
            replies = await asyncio.gather(*map(gateway.infer, together))
            for given, reply in zip(together, replies, strict=True):
                assert np.allclose(reply.answer.scores, local.predict_tensor(given).scores, atol=1e-6)

    run(test)


def test_texts_reach_workers_as_tokens(text_bundles: dict[str, Path], backend: str) -> None:
    local = sensai_serve.load(text_bundles["text"])
    texts = ("Guten Tag", "hello ü world", "guten " * 10)

    async def test() -> None:
        async with serving(text_bundles["text"], backend=backend, wait="all", patience=0) as gateway:
            assert gateway.takes_texts
            replies = await asyncio.gather(*(gateway.infer(Texts((text,), {})) for text in texts))
            for text, reply in zip(texts, replies, strict=True):
                assert reply.answer.missing == (), reply.erasures
                scores = list(local.predict(text).scores.values())
                assert np.allclose(reply.answer.scores[0], scores, atol=1e-6)
            with pytest.raises(RequestError, match="has 14 tokens, expected at most 12"):
                await gateway.infer(Texts(("guten " * 12,), {}))

    run(test)


def test_what_does_not_fit_is_refused(pooled_bundles: dict[str, Path]) -> None:
    specs = KINDS["several"]
    good = drawn(specs)
    assert isinstance(good, NamedInputs)

    async def test() -> None:
        async with serving(pooled_bundles["several"], max_batch=2) as gateway:
            for changed, said in (
                ({"input_ids": good.arrays["input_ids"][:, :4]}, "attention_mask': length is 5, expected 4, which"),
                ({"age": np.zeros((1, 2))}, "age': holds float64, expected FP32"),
                ({"age": np.zeros((2, 2), np.float32)}, "age': N is 2, expected 1, which input 'input_ids' has"),
                ({"age": np.zeros((1, 3), np.float32)}, r"age': shape is \[1, 3\], expected \[N, 2\]"),
                ({"input_ids": np.zeros((1, 13), np.int64)}, "input_ids': length is 13, expected 1 to 12"),
                ({"more": good.arrays["age"]}, "inputs are .*, more, expected input_ids, attention_mask, age"),
            ):
                with pytest.raises(RequestError, match=said):
                    await gateway.infer(NamedInputs({**good.arrays, **changed}))
            with pytest.raises(RequestError, match="the request has one input, expected input_ids"):
                await gateway.infer(good.arrays["input_ids"])

    run(test)
