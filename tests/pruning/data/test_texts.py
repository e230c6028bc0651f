"""Texts and their labels, a JSON object a line, as rows of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_fixtures import word_tokenizer

from export.assemble import write_tokenizer
from export.lengths import with_free_axes
from pruning import data
from pruning.data import Tokenizer
from pruning.data._texts import byte_tokenizer, tokenise
from sensai_serve.errors import DataError
from sensai_serve.preprocess import normalise
from sensai_serve.tensors import arrays_of
from sensai_serve.text_spec import TokenizerSpec
from sensai_serve.tokenizer import Texts, TextTokenizer

LINES = [{"text": f"{'good' if n % 2 else 'schlecht'} {n} ü", "label": ("de", "en")[n % 2]} for n in range(20)]


def written(folder: Path, lines: object = LINES) -> Path:
    text = lines if isinstance(lines, str) else "\n".join(json.dumps(line) for line in lines)  # type: ignore[attr-defined]
    (folder / "lines.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder / "lines.jsonl"


def test_texts_are_rows_of_bytes_that_nothing_normalises(tmp_path, caplog):
    dataset = data.load(f"jsonl:{written(tmp_path)}?length=12")
    assert (dataset.name, dataset.labels, dataset.spec.shape) == ("lines", ("de", "en"), (12,))
    assert (len(dataset.x), len(dataset.x_test)) == (16, 4)
    rows = {bytes(int(token) - 1 for token in row if token).decode(errors="replace") for row in dataset.x}
    assert "good 1 ü" in rows
    assert all(row.startswith(("good", "schlecht")) for row in rows)
    np.testing.assert_array_equal(normalise(dataset.x, dataset.spec), dataset.x)
    assert "texts have more than 12 tokens" in caplog.text


def test_other_keys_a_test_part_and_no_labels(tmp_path):
    path = written(tmp_path, [{"said": line["text"], "n": at % 3} for at, line in enumerate(LINES)])
    dataset = data.load(f"jsonl:{path}?text=said&label=n&test={path}")
    assert (dataset.labels, len(dataset.x), len(dataset.x_test)) == (("0", "1", "2"), 20, 20)
    (tmp_path / "names.txt").write_text("a\nb\n")
    bare = data.load(f"jsonl:{path}?text=said&label=&labels={tmp_path / 'names.txt'}", unlabelled=True)
    assert (bare.labels, bare.labelled) == (("a", "b"), False)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_the_tokenizer_of_bytes_makes_what_training_has(text: str) -> None:
    trained = tokenise([text], None, 40)
    served = tokenise([text], Tokenizer(byte_tokenizer()), 40)
    np.testing.assert_array_equal(trained.values, served.values)
    assert trained.cut == served.cut


def test_a_tokenizer_makes_tokens_as_a_bundle_does(tmp_path, caplog):
    (tmp_path / "words.json").write_bytes(word_tokenizer())
    lines = [{"text": "Guten Tag " * (1 + n % 3), "label": n % 2} for n in range(20)]
    dataset = data.load(f"jsonl:{written(tmp_path, lines)}?tokens={tmp_path / 'words.json'}&length=6&long=cut")
    rows = {tuple(row) for row in np.concatenate([dataset.x, dataset.x_test]).astype(int).tolist()}
    assert rows == {(2, 4, 5, 3, 0, 0), (2, 4, 5, 4, 5, 3)}  # the end that the tokenizer adds stays
    assert "6 texts have more than 6 tokens" in caplog.text
    assert dataset.inputs[0].vocabulary == 10
    assert dataset.tokenizer == Tokenizer(word_tokenizer(), 0, "cut")


def test_a_network_gets_the_mask_and_the_types_that_a_server_makes(tmp_path):
    """The inputs of a network of the library transformers, from a line to the bundle's tokenizer."""
    (tmp_path / "words.json").write_bytes(word_tokenizer())
    lines = [{"text": "Guten Tag " * (1 + n % 3), "label": n % 2} for n in range(20)]
    names = ("attention_mask", "input_ids", "token_type_ids")
    source = f"jsonl:{written(tmp_path, lines)}?tokens={tmp_path / 'words.json'}&length=6&inputs={','.join(names)}"
    dataset = data.load(source)
    assert [(spec.name, spec.shape, spec.vocabulary) for spec in dataset.inputs] == [
        ("attention_mask", (6,), None),
        ("input_ids", (6,), 10),
        ("token_type_ids", (6,), None),
    ]
    prepared = dataset.prepared(np.concatenate([dataset.x, dataset.x_test])).arrays
    found = {tuple(map(tuple, (row.tolist() for row in rows))) for rows in zip(*prepared.values(), strict=True)}
    none = (0,) * 6
    assert found == {
        ((1, 1, 1, 1, 0, 0), (2, 4, 5, 3, 0, 0), none),
        ((1,) * 6, (2, 4, 5, 4, 5, 3), none),
    }
    freed = with_free_axes(dataset.inputs, dict.fromkeys(names, 0), None)
    spec = write_tokenizer(dataset.tokenizer, freed, tmp_path)
    assert spec == TokenizerSpec("input_ids", 6, mask="attention_mask", types="token_type_ids")
    served = TextTokenizer((tmp_path / "tokenizer.json").read_bytes(), spec, freed).inputs(Texts(("Guten Tag",), {}))
    assert {name: array[0].tolist() for name, array in arrays_of(served, freed).items()} == {
        "attention_mask": [1] * 4, "input_ids": [2, 4, 5, 3], "token_type_ids": [0] * 4,
    }  # fmt: skip


def test_bytes_have_a_mask_too(tmp_path):
    dataset = data.load(f"jsonl:{written(tmp_path)}?length=12&inputs=x,mask")
    prepared = dataset.prepared(dataset.x).arrays
    np.testing.assert_array_equal(prepared["mask"], prepared["x"] > 0)


@pytest.mark.parametrize(
    ("lines", "options", "line"),
    [
        ([{"text": "a"}], "", "line 1 has no 'label', only text"),
        ([LINES[0], {"text": 3, "label": "x"}], "", "line 2 has 3, expected a text"),
        ('{"text": "a", "label": "x"}\nnothing', "", "line 2 is no JSON"),
        ("[1]", "", "line 1 holds list, expected an object"),
        ("", "", "has no lines"),
        (LINES, "?length=0", "length is '0', expected 1 to 8192 tokens"),
        (LINES, "?tokens=nowhere.json", "tokens: 'nowhere.json' is not there"),
        (LINES, "?long=x", "long is 'x', expected refuse or cut"),
        (LINES, "?flip=1", "unknown option 'flip'"),
        (LINES, "?inputs=mask", "a tokenizer is given, and the inputs are mask INT64 .*, expected one for tokens"),
        (LINES, "?inputs=ids,ages,mask", "the inputs are ids .* and ages .*, expected one for tokens"),
        (LINES, "?inputs=input_ids,ages", "inputs are input_ids, ages, expected one for tokens, and at most one each"),
        (LINES, "?inputs=", "input: name is '', expected 1 to 256"),
        (LINES, "?inputs=ids,ids", "expected one for tokens"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, lines, options, line):
    with pytest.raises(DataError, match=line) as caught:
        data.load(f"jsonl:{written(tmp_path, lines)}{options}")
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_one_line(tmp_path):
    (tmp_path / "words.json").write_text("{}")
    with pytest.raises(DataError, match=r"words.json: the tokenizer cannot be read \(.*\), expected a tokenizer.json"):
        data.load(f"jsonl:{written(tmp_path)}?tokens={tmp_path / 'words.json'}")


def test_what_is_no_utf8(tmp_path):
    (tmp_path / "lines.jsonl").write_bytes(b'{"text": "\xff", "label": "x"}\n')
    with pytest.raises(DataError, match=r"cannot be read .*expected JSON lines in UTF-8"):
        data.load(f"jsonl:{tmp_path / 'lines.jsonl'}")
