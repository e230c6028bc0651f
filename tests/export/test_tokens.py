"""Texts from JSON lines to a bundle: networks are trained on tokens in FP32, clients send INT64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.assemble import export
from pruning import models
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from sensai_serve.errors import RequestError
from sensai_serve.local import load
from sensai_serve.text_spec import TokenizerSpec

WORDS = {"de": "und der die", "en": "and the of", "fr": "et le la", "it": "e il di"}


class Reader(nn.Module):
    """An embedding and a GRU."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(257, 8), nn.GRU(8, 16, batch_first=True)
        self.linear = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer(self.tokens(x))[0].mean(1))


def reader(n_classes: int) -> nn.Module:
    return Reader(n_classes)


def test_a_bundle_of_texts_takes_tokens_of_its_vocabulary(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    lines = [{"text": f"{n} {words}", "label": label} for n in range(20) for label, words in WORDS.items()]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, lines)))
    torch.manual_seed(0)
    torch.save(models.create("test_tokens:reader", 4, (16,)).state_dict(), tmp_path / "w.pt")
    recipe = Recipe(
        f"jsonl:{tmp_path / 'said.jsonl'}?length=16",
        "test_tokens:reader",
        assignment="grouped",
        groups=2,
        grouping="random",
        amount=0.6,
        recover_images=128,
        images=64,
        batch=32,
        profile_images=8,
    )
    run = prune_reference(make_plan(recipe, tmp_path / "w.pt", threads=1), tmp_path / "run")
    bundle = export(run, tmp_path / "bundle", padding=1)
    (spec,) = bundle.manifest.inputs
    assert (spec.name, spec.dtype, spec.shape, spec.vocabulary) == ("tokens", "INT64", (16,), 257)
    golden, classifier = bundle.golden(), load(bundle)
    assert golden.tensor.dtype == np.int64
    answer = classifier.predict_tensor(golden.inputs)
    golden.check(answer.scores, answer.class_id)
    assert classifier.predict([1] * 16).label in WORDS
    assert bundle.manifest.tokenizer == TokenizerSpec("tokens", 16)
    ready = [byte + 1 for byte in b"17 und der die"]
    assert classifier.predict("17 und der die") == classifier.predict(ready + [0] * (16 - len(ready)))
    with pytest.raises(RequestError, match="has 17 tokens, expected at most 16"):
        classifier.predict("x" * 17)
    with pytest.raises(RequestError, match="holds 257, expected 0 to 256, the vocabulary"):
        classifier.predict([257] * 16)
