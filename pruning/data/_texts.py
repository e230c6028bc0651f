"""Texts as tokens: bytes, or what a tokenizer of the `tokenizers` library makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning.data._arrays import from_arrays
from pruning.data._dataset import Dataset
from pruning.data._paths import existing
from pruning.notices import say
from sensai_serve.errors import DataError
from sensai_serve.preprocess import InputSpec

BYTES = "bytes"
"""Name of the tokens that are the bytes of a text in UTF-8, each one higher than its byte: 0 follows the end."""


LONGEST = 8192
"""The most tokens of a text."""
LARGEST = 1 << 24
"""FP32 has every whole number up to this."""


@dataclass(frozen=True)
class Tokens:
    """Texts, each as a row of as many tokens."""

    values: npt.NDArray[np.int64]
    """[N, length]; 0, or the tokenizer's padding, behind the end of a text."""
    vocabulary: int
    cut: int
    """Texts that had more tokens, of which the first were taken."""


def from_texts(
    name: str,
    texts: Sequence[str],
    labels: Sequence[Any] | None,
    test: tuple[Sequence[str], Sequence[Any] | None] | None,
    *,
    tokens: str,
    length: str,
    seed: int,
) -> Dataset:
    """A dataset of texts, each as a row of tokens, whole numbers in FP32 that nothing normalises.

    Args:
        name: what to call it.
        texts: N texts.
        labels: [N], as `class_indices` takes them; None: not labelled.
        test: texts and labels of the test part; None: one is held out.
        tokens: ``bytes``, or the path of a ``tokenizer.json``.
        length: tokens of each text.
        seed: draws the test part where there is none.

    Raises:
        DataError: the tokenizer cannot be read, or labels do not fit.
    """
    if not (length.isascii() and length.isdigit() and 1 <= int(length) <= LONGEST):
        raise DataError(f"{name}: length is {length!r}, expected 1 to {LONGEST} tokens")
    found = tokenise(texts, tokens, int(length))
    arrays: dict[str, Any] = {"x": found.values.astype(np.float32)}
    if labels is not None:
        arrays["y"] = np.asarray(labels)
    cut = found.cut
    if test is not None:
        others = tokenise(test[0], tokens, int(length))
        arrays["x_test"], cut = others.values.astype(np.float32), cut + others.cut
        if test[1] is not None:
            arrays["y_test"] = np.asarray(test[1])
    if cut:
        say(f"{name}: {cut} texts have more than {length} tokens, of which the first {length} are taken")
    if found.vocabulary > LARGEST:
        raise DataError(f"{name}: the tokenizer has {found.vocabulary} tokens, expected at most {LARGEST}")
    spec = InputSpec((int(length),), "tokens")
    return dataclasses.replace(
        from_arrays(name, arrays, seed=seed, picture="no"), spec=spec, vocabulary=found.vocabulary
    )


def tokenise(texts: Sequence[str], tokens: str, length: int) -> Tokens:
    """Make tokens of texts.

    Args:
        texts: N texts.
        tokens: ``bytes``, or the path of a ``tokenizer.json``.
        length: tokens of each.

    Raises:
        DataError: the tokenizer is not there, damaged, or its library is not installed.
    """
    if tokens == BYTES:
        rows = [list(text.encode("utf-8", "replace")) for text in texts]
        return Tokens(
            _padded([[byte + 1 for byte in row[:length]] for row in rows], length, 0), 257, _cut(rows, length)
        )
    tokenizer = _tokenizer(tokens)
    rows = [encoded.ids for encoded in tokenizer.encode_batch(list(texts))]
    padding = tokenizer.token_to_id("[PAD]")
    return Tokens(
        _padded([row[:length] for row in rows], length, 0 if padding is None else padding),
        tokenizer.get_vocab_size(),
        _cut(rows, length),
    )


def _tokenizer(path: str) -> Any:
    file = existing(path, "tokens")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise DataError(f"tokens: {path} takes the package tokenizers: pip install tokenizers") from None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception over damage
        raise DataError(f"tokens: {path} cannot be read ({error}), expected a tokenizer.json") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _padded(rows: Sequence[Sequence[int]], length: int, padding: int) -> npt.NDArray[np.int64]:
    values = np.full((len(rows), length), padding, np.int64)
    for row, tokens in zip(values, rows, strict=True):
        row[: len(tokens)] = tokens
    return values


def _cut(rows: Sequence[Sequence[int]], length: int) -> int:
    return sum(len(row) > length for row in rows)
