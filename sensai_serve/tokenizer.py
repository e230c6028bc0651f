"""Makes tokens of texts with a bundle's ``tokenizer.json``; needs the library `tokenizers`, imported on first use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensai_serve.errors import InputError, RequestError, UnsupportedError
from sensai_serve.input_spec import InputSpec
from sensai_serve.tensors import Array, Inputs, check_values, inputs_of
from sensai_serve.text_spec import TokenizerSpec

MAX_TOKENIZER_BYTES = 128 * 1024 * 1024
LONG = 1024
"""Characters of a text above which the library is asked in the way that lets other threads run meanwhile."""
MISSING = "texts need the package tokenizers, which is not installed here, expected pip install 'sensai-serve[text]'"
PADDINGS = ("[PAD]", "<pad>", "<|padding|>", "<|endoftext|>")
"""Tokens that stand behind the end of a text where a tokenizer does not say which one does."""


@dataclass(frozen=True, eq=False)
class Texts:
    """N inputs as clients send them to a bundle with a tokenizer."""

    texts: tuple[str, ...]
    """N texts."""
    others: Mapping[str, Array]
    """The inputs that the tokenizer does not make, each an array [N, ...], by name."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def characters(self) -> int:
        """Characters of all texts."""
        return sum(map(len, self.texts))


class TextTokenizer:
    """Makes the inputs of one bundle of texts. May be used by several threads."""

    def __init__(self, data: bytes, spec: TokenizerSpec, inputs: Sequence[InputSpec]) -> None:
        """Read a tokenizer.

        Args:
            data: the ``tokenizer.json``.
            spec: which inputs its tokens go to.
            inputs: all that the network takes.

        Raises:
            UnsupportedError: the library is not installed.
            InputError: it is no tokenizer, or makes tokens that the network does not know.
        """
        check_vocabulary(data, spec, inputs)
        self.spec = spec
        self._inputs = tuple(inputs)
        self._by_name = {one.name: one for one in inputs}
        self._fixed = spec.fixed(inputs)
        self._tokenizer = open_tokenizer(data, cut_to=spec.maximum if spec.too_long == "cut" else None)
        try:
            self._tokenizer.encode("a")
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception:  # noqa: S110 - a word that it does not know, which it says of a text too
            pass
        except BaseException as error:  # the library panics, and would at every text
            raise InputError(f"the tokenizer fails on a text ({_line(error)}), expected a sound one") from None

    def inputs(self, given: Texts, check: Callable[[], None] = lambda: None) -> Inputs:
        """Make a network's inputs.

        Args:
            given: N texts, and the inputs beside them.
            check: called before each text; what it raises ends the work.

        Raises:
            RequestError: a text is empty, too long, no Unicode, or cannot be tokenised.
        """
        spec, rows = self.spec, []
        for at, text in enumerate(given.texts):
            check()
            where = f"input {spec.name!r}" + (f", text {at}" if len(given) > 1 else "")
            rows.append(self._encode(text, where))
        lengths = [len(row.ids) for row in rows]
        length = max(lengths) if self._fixed is None else self._fixed
        if self._fixed is None and spec.mask is None and min(lengths) < length:
            raise RequestError(
                f"input {spec.name!r}: texts have {min(lengths)} and {length} tokens, expected one length in a "
                "request: this model takes no mask that says where a text ends"
            )
        arrays = dict(given.others)
        for name, values, padding in (
            (spec.ids, [row.ids for row in rows], spec.padding),
            (spec.mask, [row.attention_mask for row in rows], 0),
            (spec.types, [row.type_ids for row in rows], 0),
        ):
            if name is not None:
                arrays[name] = padded(values, length, padding).astype(self._by_name[name].numpy)
        check_values(arrays[spec.ids], self._by_name[spec.ids])
        return inputs_of(arrays, self._inputs)

    def _encode(self, text: str, where: str) -> Any:
        spec = self.spec
        check_text(text, where)
        if len(text) > spec.most_characters:
            if spec.too_long == "refuse":
                raise RequestError(
                    f"{where}: has {len(text)} characters, expected at most {spec.most_characters}, and at most "
                    f"{spec.maximum} tokens"
                )
            text = text[: spec.most_characters]
        encoded = encode(self._tokenizer, text, where)
        if len(encoded.ids) > spec.maximum:
            raise RequestError(f"{where}: has {len(encoded.ids)} tokens, expected at most {spec.maximum}")
        if not encoded.ids:
            raise RequestError(f"{where}: has no tokens, expected at least one")
        return encoded


def check_text(text: str, where: str) -> None:
    """Check that a text can be sent and tokenised.

    Raises:
        RequestError: it is empty, or no Unicode, as an argument of the command line that is not UTF-8.
    """
    if not text:
        raise RequestError(f"{where}: is an empty text, expected at least one character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{where}: is not UTF-8, expected text in UTF-8") from None


def decoded_texts(data: Iterable[bytes | memoryview], spec: TokenizerSpec) -> tuple[str, ...]:
    """The texts of a request, of their bytes in UTF-8.

    Raises:
        RequestError: one is not UTF-8, or empty.
    """
    where = f"input {spec.name!r}"
    return checked([decoded(one, f"{where}, text {at}") for at, one in enumerate(data)], where)


def checked(texts: Sequence[str], where: str) -> tuple[str, ...]:
    """The same texts, each of which can be sent and tokenised. Raises as `check_text`, and says which it is."""
    for at, text in enumerate(texts):
        check_text(text, where if len(texts) == 1 else f"{where}, text {at}")
    return tuple(texts)


def decoded(data: bytes | memoryview, where: str, *, file: bool = False) -> str:
    """The text that bytes in UTF-8 are.

    Args:
        data: the bytes.
        where: what they are, for the error.
        file: they are the content of a file, in front of which a byte order mark may stand.

    Raises:
        RequestError: they are not UTF-8.
    """
    try:
        return str(data, "utf-8-sig" if file else "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: byte {error.start} is not UTF-8, expected text in UTF-8") from None


def open_tokenizer(data: bytes, *, cut_to: int | None = None) -> Any:
    """A tokenizer of the library `tokenizers`, which pads nothing.

    Args:
        data: the ``tokenizer.json``.
        cut_to: tokens that are kept of longer texts, those that the tokenizer adds at its ends included; None: all.

    Raises:
        UnsupportedError: the library is not installed.
        InputError: it is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UnsupportedError(MISSING) from None
    try:
        tokenizer = Tokenizer.from_buffer(data)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if cut_to is not None:
            tokenizer.enable_truncation(cut_to)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises a bare Exception over damage, and what is none where it panics
        raise InputError(f"the tokenizer cannot be read ({_line(error)}), expected a tokenizer.json") from None
    return tokenizer


def encode(tokenizer: Any, text: str, where: str) -> Any:
    """The library's Encoding of a text: ``ids``, ``attention_mask``, ``type_ids``.

    Raises:
        RequestError: the tokenizer fails on it.
    """
    try:
        return tokenizer.encode(text) if len(text) <= LONG else tokenizer.encode_batch([text])[0]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a bare Exception over an unknown word, and what is none where it panics
        raise RequestError(f"{where}: cannot be tokenised ({_line(error)}), expected text that it knows") from None


def padded(rows: Iterable[Sequence[int]], length: int, padding: int) -> Array:
    """Rows of whole numbers as INT64 [N, length], `padding` behind the end of each; longer ones are cut."""
    rows = list(rows)
    values = np.full((len(rows), length), padding, np.int64)
    for row, tokens in zip(values, rows, strict=True):
        row[: len(tokens)] = tokens[:length]
    return values


def described(data: bytes) -> Mapping[str, Any]:
    """What a ``tokenizer.json`` holds.

    Raises:
        InputError: it is no JSON object with a model.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the tokenizer is no JSON ({_line(error)}), expected a tokenizer.json") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError("the tokenizer has no model, expected a tokenizer.json of the library tokenizers")
    return content


def largest_token(data: bytes) -> int:
    """The largest token that a ``tokenizer.json`` may make, read without the library; -1 for none.

    Raises:
        InputError: it is no tokenizer.
    """
    content = described(data)
    vocabulary, added = content["model"].get("vocab"), content.get("added_tokens") or []
    try:
        known = [*vocabulary.values()] if isinstance(vocabulary, dict) else [len(vocabulary or ()) - 1]
        return max((int(token) for token in (*known, *(one["id"] for one in added))), default=-1)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise InputError("the tokenizer's vocabulary is damaged, expected a tokenizer.json") from None


def padding_of(data: bytes) -> int:
    """The token that stands behind the end of a text: what the tokenizer pads with, or one of `PADDINGS`, or 0.

    Raises:
        InputError: it is no tokenizer.
    """
    largest_token(data)  # which finds damage
    content = described(data)
    said = content.get("padding")
    if isinstance(said, dict) and isinstance(said.get("pad_id"), int):
        return int(said["pad_id"])
    vocabulary = content["model"].get("vocab")
    known = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    if isinstance(vocabulary, list):
        known = {one[0]: at for at, one in enumerate(vocabulary) if isinstance(one, list) and isinstance(one[0], str)}
    for one in content.get("added_tokens") or []:
        known[str(one["content"])] = one["id"]
    found = next((known[name] for name in PADDINGS if isinstance(known.get(name), int)), 0)
    return int(found)


def check_vocabulary(data: bytes, spec: TokenizerSpec, inputs: Sequence[InputSpec]) -> None:
    """Check that a network knows every token of a tokenizer.

    Raises:
        InputError: it is no tokenizer, or has more tokens than the network.
    """
    largest = largest_token(data)
    ids = next(one for one in inputs if one.name == spec.ids)
    if ids.vocabulary is not None and largest >= ids.vocabulary:
        raise InputError(
            f"the tokenizer makes tokens up to {largest}, expected at most {ids.vocabulary - 1}, the vocabulary of "
            f"{ids.name!r}"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
