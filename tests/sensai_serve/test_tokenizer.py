"""A bundle's tokenizer makes inputs of texts, or says in one line why it does not."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_fixtures import IDS, TEXT_KINDS, word_tokenizer

import sensai_serve
from sensai_serve.bundles import Bundle, sha256_of
from sensai_serve.errors import BundleError, ChecksumError, InputError, RequestError, UnsupportedError
from sensai_serve.input_spec import InputSpec
from sensai_serve.tensors import arrays_of
from sensai_serve.text_spec import TokenizerSpec
from sensai_serve.tokenizer import Texts, TextTokenizer, largest_token, padding_of

AGE = {"age": np.zeros((1, 2), np.float32)}


def tokenizer(kind: str, data: bytes | None = None, **changed: Any) -> TextTokenizer:
    specs, spec = TEXT_KINDS[kind]
    return TextTokenizer(word_tokenizer() if data is None else data, replace(spec, **changed), specs)


def test_tokens_and_mask_of_several_texts() -> None:
    made = arrays_of(tokenizer("text").inputs(Texts(("Guten Tag", "hello x world"), {})), TEXT_KINDS["text"][0])
    np.testing.assert_array_equal(made["input_ids"], [[2, 4, 5, 3, 0], [2, 7, 1, 8, 3]])
    np.testing.assert_array_equal(made["attention_mask"], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert made["input_ids"].dtype == made["attention_mask"].dtype == np.int64


def test_a_fixed_length_is_filled_up_and_longer_texts_keep_their_end() -> None:
    made = arrays_of(tokenizer("fixed").inputs(Texts(("guten " * 20,), AGE)), TEXT_KINDS["fixed"][0])
    np.testing.assert_array_equal(made["tokens"], [[2, 4, 4, 4, 4, 3, 0, 0]])
    assert (made["tokens"].dtype, made["age"].shape) == (np.int32, (1, 2))


@pytest.mark.parametrize(
    ("kind", "texts", "said"),
    [
        ("text", ("",), "input 'text': is an empty text, expected at least one character"),
        ("text", ("hello", ""), "input 'text', text 1: is an empty text"),
        ("text", ("hello " * 11,), "input 'text': has 13 tokens, expected at most 12"),
        ("text", ("x" * 5000,), "has 5000 characters, expected at most 4096, and at most 12 tokens"),
        ("text", ("\udcff",), "is not UTF-8"),
        ("bare", ("hello", "hello world"), "texts have 3 and 4 tokens, expected one length in a request"),
    ],
)
def test_texts_that_are_refused(kind: str, texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        tokenizer(kind).inputs(Texts(texts, {}))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_fails_on_a_word_is_one_line() -> None:
    model = {"type": "WordLevel", "vocab": {"hello": 0}, "unk_token": "[UNK]"}
    with pytest.raises(RequestError, match=r"cannot be tokenised .*UNK.*, expected text that it knows"):
        tokenizer("bare", word_tokenizer(model=model, post_processor=None)).inputs(Texts(("other",), {}))
    with pytest.raises(RequestError, match="has no tokens, expected at least one"):
        tokenizer("bare", word_tokenizer(post_processor=None)).inputs(Texts(("  ",), {}))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[]", "has no model"),
        (b'{"model": {}}', "cannot be read"),
        (b'{"model": {"vocab": {"a": "b"}}}', "vocabulary is damaged"),
        (b'{"model": {"vocab": 5}}', "vocabulary is damaged"),
        (word_tokenizer(added_tokens=[{"id": 10, "content": "[MASK]"}]), "tokens up to 10, expected at most 9"),
    ],
)
def test_what_is_no_tokenizer_for_this_network(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        tokenizer("text", data)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_panics_is_refused_before_any_text() -> None:
    broken = json.loads(word_tokenizer())
    del broken["post_processor"]["special_tokens"]["[CLS]"]
    with pytest.raises(InputError, match=r"the tokenizer (fails on a text|cannot be read) \(.*\), expected"):
        tokenizer("text", json.dumps(broken).encode())


def test_the_padding_is_what_the_tokenizer_says() -> None:
    assert (padding_of(word_tokenizer()), largest_token(word_tokenizer())) == (0, 9)
    assert padding_of(word_tokenizer(padding={"pad_id": 3})) == 3
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["<pad>", 0.0]]}
    assert (padding_of(word_tokenizer(model=unigram)), largest_token(word_tokenizer(model=unigram))) == (1, 1)


@pytest.mark.parametrize(
    ("specs", "spec", "said"),
    [
        ((IDS,), TokenizerSpec("other", 12), "there is no input 'other', expected one of input_ids"),
        ((IDS,), TokenizerSpec("input_ids", 13), "maximum is 13, expected 1 to 12"),
        ((IDS,), TokenizerSpec("input_ids", 12, padding=10), "padding is 10, expected 0 to 9"),
        ((IDS,), TokenizerSpec("input_ids", 12, name="input_ids"), "names twice"),
        ((IDS,), TokenizerSpec("input_ids", 12, mask="input_ids"), "names twice"),
        ((InputSpec((8,)),), TokenizerSpec("input", 8), "'input' is FP32, expected INT32 or INT64"),
        ((InputSpec((8, 2), dtype="INT64"),), TokenizerSpec("input", 8), r"has shape \[8, 2\], expected one axis"),
        ((IDS, InputSpec((12,), "mask")), TokenizerSpec("input_ids", 12, mask="mask"), "expected .* as 'input_ids'"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_inputs(specs: Any, spec: TokenizerSpec, said: str) -> None:
    with pytest.raises(InputError, match=said):
        spec.check(specs)


@pytest.fixture
def copied(text_bundles: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(text_bundles["text"], tmp_path / "bundle")
    return tmp_path / "bundle"


def rewrite(bundle: Path, **changed: Any) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**raw, **changed}))


def test_the_bundle_holds_it_and_checks_it(copied: Path) -> None:
    bundle = Bundle.open(copied)
    bundle.verify()
    assert bundle.manifest.tokenizer == TEXT_KINDS["text"][1]
    (copied / "tokenizer.json").write_bytes(word_tokenizer(version="1.1"))
    with pytest.raises(ChecksumError, match=r"tokenizer.json has SHA-256"):
        bundle.verify()
    damaged = b'{"model": 1}'
    (copied / "tokenizer.json").write_bytes(damaged)
    checksums = {**bundle.manifest.checksums, "tokenizer.json": sha256_of(copied / "tokenizer.json")}
    rewrite(copied, checksums=checksums)
    with pytest.raises(BundleError, match=r"tokenizer.json: the tokenizer has no model"):
        Bundle.open(copied).verify()


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        ({"ids": "input_ids"}, "tokenizer: maximum is missing"),
        ({"ids": "input_ids", "maximum": 12, "more": 1}, "tokenizer: unknown key 'more'"),
        ({"ids": "input_ids", "maximum": "12"}, "tokenizer: maximum is '12', expected a whole number"),
        ({"ids": 1, "maximum": 12}, "tokenizer: ids is '1', expected text"),
        ({"ids": "input_ids", "maximum": 12, "too_long": "x"}, "too_long is 'x', expected refuse or cut"),
        ({"ids": "input_ids", "maximum": 12, "file": "../x"}, "expected a path inside the bundle"),
        ({"ids": "input_ids", "maximum": 12, "file": "other.json"}, "checksums has none of other.json"),
        ("tokenizer.json", "tokenizer is .*, expected an object"),
    ],
)
def test_a_manifest_that_says_something_impossible(copied: Path, tokenizer: Any, said: str) -> None:
    rewrite(copied, tokenizer=tokenizer)
    with pytest.raises(BundleError, match=said):
        Bundle.open(copied)


def test_a_text_is_classified_in_process(text_bundles: dict[str, Path], tmp_path: Path) -> None:
    classifier = sensai_serve.load(text_bundles["text"])
    ids = {"input_ids": [2, 4, 5, 3], "attention_mask": [1, 1, 1, 1]}
    expected = classifier.predict(ids)
    (tmp_path / "said.txt").write_bytes(b"\xef\xbb\xbfguten tag")
    for given in ("Guten Tag", b"Guten Tag", tmp_path / "said.txt", {"text": "guten tag"}):
        assert classifier.predict(given) == expected  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="input 'text': byte 1 is not UTF-8"):
        classifier.predict(b"a\xff")
    with pytest.raises(RequestError, match="input 'attention_mask' is unknown, expected text alone"):
        classifier.predict({"text": "hello", "attention_mask": [1]})
    beside = sensai_serve.load(text_bundles["fixed"])
    assert beside.predict({"text": "hello", "age": [1, 2]}) == beside.predict(  # type: ignore[dict-item]
        {"tokens": [2, 7, 3, 0, 0, 0, 0, 0], "age": [1, 2]}
    )
    with pytest.raises(RequestError, match="input 'age' is missing"):
        beside.predict("hello")


def test_without_the_library_tokens_are_taken_and_texts_say_what_is_missing(
    text_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    Bundle.open(text_bundles["bare"]).verify()
    classifier = sensai_serve.load(text_bundles["bare"])
    assert classifier.predict([2, 7, 3]).label
    with pytest.raises(UnsupportedError, match=r"need the package tokenizers, .*pip install 'sensai-serve\[text\]'"):
        classifier.predict("hello")
