"""A tokenizer for a bundle of files that there are already: which inputs it makes, and how long texts may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sensai_serve.errors import InputError
from sensai_serve.input_spec import InputSpec
from sensai_serve.text_spec import TokenizerSpec, TooLong
from sensai_serve.tokenizer import MAX_TOKENIZER_BYTES, check_vocabulary, padding_of


def read_tokenizer(source: str | Path | bytes) -> bytes:
    """The bytes of a ``tokenizer.json``.

    Raises:
        InputError: it cannot be read, or is too large to be one.
    """
    if isinstance(source, bytes):
        return source
    try:
        with Path(source).open("rb") as file:
            data = file.read(MAX_TOKENIZER_BYTES + 1)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}, expected a tokenizer.json") from None
    if len(data) > MAX_TOKENIZER_BYTES:
        raise InputError(f"{source} has more than {MAX_TOKENIZER_BYTES} bytes, expected a tokenizer.json")
    return data


def tokenizer_spec(data: bytes, specs: Sequence[InputSpec], too_long: TooLong) -> TokenizerSpec:
    """How a tokenizer makes the inputs of a network: tokens, a mask and types, told apart by their names.

    Args:
        data: the ``tokenizer.json``.
        specs: what the network takes.
        too_long: what becomes of texts of more tokens than the network takes.

    Raises:
        InputError: no input, or several, could hold the tokens, or the tokenizer does not fit the network.
    """
    made = TokenizerSpec.of_inputs(specs, too_long=too_long, padding=padding_of(data))
    made.check(specs)
    check_vocabulary(data, made, specs)
    return made
