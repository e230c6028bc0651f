"""Networks of the library transformers, from lines of text to answers; skipped where it is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from text_fixtures import word_tokenizer

import sensai_serve
from sensai_serve.cli.main import main

pytest.importorskip("transformers")

NETWORKS = """
from transformers import (
    BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification,
)

def bert(n_classes):
    return BertForSequenceClassification(BertConfig(
        vocab_size=10, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=16, num_labels=n_classes))

def distilbert(n_classes):
    return DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=10, dim=32, n_layers=1, n_heads=2, hidden_dim=48, max_position_embeddings=16, num_labels=n_classes))
"""
SAID = {"de": "guten tag", "en": "hello world", "fr": "bonjour bonjour"}


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    assert ended.value.code == 0


@pytest.mark.parametrize("network", ["bert", "distilbert"])
def test_a_network_is_trained_pruned_and_exported_and_answers_texts(network: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("networks_of_others.py").write_text(NETWORKS)
    Path("words.json").write_bytes(word_tokenizer())
    lines = [{"text": f"{text} {'ü ' * (n % 4)}", "label": label} for n in range(40) for label, text in SAID.items()]
    Path("said.jsonl").write_text("\n".join(map(json.dumps, lines)))
    inputs = "input_ids,attention_mask,token_type_ids" if network == "bert" else "input_ids,attention_mask"
    source = f"jsonl:said.jsonl?tokens=words.json&length=8&long=cut&inputs={inputs}"
    which = ("--data", source, "--model", f"networks_of_others:{network}", "--batch", 16, "--threads", 1, "--quiet")
    run("train", *which, "--epochs", 30, "--out", "w.safetensors")
    run("prune", *which, "--weights", "w.safetensors", "--assignment", "cyclic", "--redundancy", 2, "--macs", 0.5,
        "--recover-images", 1600, "--images", 320, "--out", "run")  # fmt: skip
    freed = [each for name in inputs.split(",") for each in ("--dynamic", name)]
    run("export", "run", "--out", "bundle", *freed, "--pad-channels", 1, "--quiet")
    classifier = sensai_serve.load("bundle")
    assert classifier.manifest.tokenizer is not None
    assert classifier.manifest.tokenizer.made == tuple(inputs.split(","))
    assert {label: classifier.predict(text).label for label, text in SAID.items()} == {label: label for label in SAID}
    length = classifier.manifest.provenance["length"]
    assert length["same_label"] == length["padded"] > 0
