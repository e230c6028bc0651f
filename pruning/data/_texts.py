"""Texts as tokens: bytes, or what a tokenizer of the library `tokenizers` makes of them, as a server makes them too."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from pruning.data._arrays import from_arrays
from pruning.data._dataset import Dataset, Tokenizer
from pruning.data._packed import LARGEST, pack, packed_spec
from pruning.data._paths import existing
from pruning.notices import say
from sensai_serve.errors import DataError, InputError
from sensai_serve.preprocess import InputSpec
from sensai_serve.text_spec import TokenizerSpec, TooLong
from sensai_serve.tokenizer import encode, largest_token, open_tokenizer, padded, padding_of

BYTES = "bytes"
"""Name of the tokens that are the bytes of a text in UTF-8, each one higher than its byte: 0 follows the end."""
TOKENS = "tokens"
"""Name of a network's input where nobody says it."""
LONGEST = 8192
"""The most tokens of a text."""


@dataclass(frozen=True)
class Tokens:
    """Texts, each as a row of as many tokens."""

    values: npt.NDArray[np.int64]
    """[N, length]; 0, or the tokenizer's padding, behind the end of a text."""
    mask: npt.NDArray[np.int64]
    """[N, length]; 1 for a token, 0 behind the end."""
    types: npt.NDArray[np.int64]
    """[N, length]; which of two sentences a token is of."""
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
    too_long: str = "refuse",
    inputs: Sequence[str] = (TOKENS,),
) -> Dataset:
    """A dataset of texts, each as a row of tokens, whole numbers that nothing normalises; and their mask and types.

    Args:
        name: what to call it.
        texts: N texts.
        labels: [N], as `class_indices` takes them, or lists of names; None: not labelled.
        test: texts and labels of the test part; None: one is held out.
        tokens: ``bytes``, or the path of a ``tokenizer.json``.
        length: tokens of each text.
        seed: draws the test part where there is none.
        too_long: what a server does with longer texts, ``refuse`` or ``cut``.
        inputs: names of the network's inputs, in the order in which it takes them: of the tokens, and where it takes
            them of their mask and their types, which `TokenizerSpec.of_inputs` tells apart.

    Raises:
        DataError: the tokenizer cannot be read, labels do not fit, or an input is none that a tokenizer makes.
    """
    if not (length.isascii() and length.isdigit() and 1 <= int(length) <= LONGEST):
        raise DataError(f"{name}: length is {length!r}, expected 1 to {LONGEST} tokens")
    if too_long not in get_args(TooLong):
        raise DataError(f"{name}: long is {too_long!r}, expected {' or '.join(get_args(TooLong))}")
    data = byte_tokenizer() if tokens == BYTES else _read(tokens)
    vocabulary = largest_token(data) + 1
    if vocabulary > LARGEST:
        raise DataError(f"{name}: the tokenizer has {vocabulary} tokens, expected at most {LARGEST}")
    made = Tokenizer(data, padding_of(data), cast(TooLong, too_long))
    specs, spec = _specs(name, inputs, int(length), vocabulary, made)
    cut = 0

    def rows(given: Sequence[str]) -> Any:
        nonlocal cut
        found = tokenise(given, None if tokens == BYTES else made, int(length))
        cut += found.cut
        arrays = {spec.ids: found.values, spec.mask: found.mask, spec.types: found.types}
        return pack(name, {each: arrays[each] for each in inputs}, specs)

    arrays: dict[str, Any] = {"x": rows(texts)}
    if labels is not None:
        arrays["y"] = _plain(labels)
    if test is not None:
        arrays["x_test"] = rows(test[0])
        if test[1] is not None:
            arrays["y_test"] = _plain(test[1])
    if cut:
        say(f"{name}: {cut} texts have more than {length} tokens, of which the first {length} are taken")
    dataset = from_arrays(name, arrays, seed=seed, picture="no")
    return dataclasses.replace(dataset, spec=packed_spec(specs), inputs=specs, tokenizer=made)


def _specs(
    name: str, inputs: Sequence[str], length: int, vocabulary: int, tokenizer: Tokenizer
) -> tuple[tuple[InputSpec, ...], TokenizerSpec]:
    """The network's inputs, and which of them is what."""
    try:
        specs = tuple(InputSpec((length,), each, "INT64") for each in inputs)
        spec = TokenizerSpec.of_inputs(specs, too_long=tokenizer.too_long, padding=tokenizer.padding)
        specs = tuple(dataclasses.replace(one, vocabulary=vocabulary) if one.name == spec.ids else one for one in specs)
        spec.check(specs)
    except InputError as error:
        raise DataError(f"{name}: {error}") from None
    if sorted(spec.made) != sorted(inputs):
        raise DataError(
            f"{name}: inputs are {', '.join(inputs)}, expected one for tokens, and at most one each whose name says "
            "that it is their mask or their types"
        )
    return specs, spec


def tokenise(texts: Sequence[str], tokenizer: Tokenizer | None, length: int) -> Tokens:
    """Make tokens of texts.

    Args:
        texts: N texts.
        tokenizer: what makes them; None: the tokens are bytes, which `byte_tokenizer` makes too.
        length: tokens of each.

    Raises:
        UnsupportedError: the library `tokenizers` is not installed.
        InputError: the tokenizer is damaged, or fails on a text.
    """
    if tokenizer is None:
        rows = [[byte + 1 for byte in text.encode("utf-8", "replace")] for text in texts]
        mask = padded([[1] * len(row) for row in rows], length, 0)
        return Tokens(padded(rows, length, 0), mask, np.zeros_like(mask), sum(len(row) > length for row in rows))
    opened = open_tokenizer(tokenizer.data, cut_to=length)
    most = TokenizerSpec(TOKENS, length).most_characters
    found = [encode(opened, text[:most], f"text {at}") for at, text in enumerate(texts)]
    values, mask, types = (
        padded(each, length, padding)
        for each, padding in (
            ([one.ids for one in found], tokenizer.padding),
            ([one.attention_mask for one in found], 0),
            ([one.type_ids for one in found], 0),
        )
    )
    cut = [bool(one.overflowing) or len(text) > most for one, text in zip(found, texts, strict=True)]
    return Tokens(values, mask, types, sum(cut))


def _plain(labels: Sequence[Any]) -> Any:
    return list(labels) if any(isinstance(one, list) for one in labels) else np.asarray(labels)


def byte_tokenizer() -> bytes:
    """A ``tokenizer.json`` whose tokens are the bytes of a text in UTF-8, each one higher than its byte."""
    written = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in written]  # the library writes these as characters from 256 on
    names = {byte: chr(byte) for byte in written} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {"[PAD]": 0, **{names[byte]: byte + 1 for byte in range(256)}},
        "merges": [],
    }
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _read(path: str) -> bytes:
    file = existing(path, "tokens")
    try:
        data = file.read_bytes()
        open_tokenizer(data)
    except OSError as error:
        raise DataError(f"tokens: {path} cannot be read ({error.strerror}), expected a tokenizer.json") from None
    except InputError as error:
        raise DataError(f"tokens: {path}: {error}") from None
    return data
