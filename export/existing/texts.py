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
    whole = [spec for spec in specs if spec.dtype in ("INT32", "INT64") and len(spec.shape) == 1]
    mask = next((spec.name for spec in specs if "mask" in spec.name.lower() and len(spec.shape) == 1), None)
    types = next((spec.name for spec in whole if "type" in spec.name.lower()), None)
    ids = [spec for spec in whole if spec.name not in (mask, types)]
    if len(ids) > 1:
        ids = [spec for spec in ids if spec.name == "input_ids"] or ids
    if len(ids) != 1:
        taken = " and ".join(f"{spec.name} {spec.dtype} {spec.described}" for spec in specs)
        raise InputError(f"a tokenizer is given, and the files take {taken}, expected one input for tokens, of INT64")
    made = TokenizerSpec(ids[0].name, ids[0].elements, mask, types, too_long, padding_of(data))
    made.check(specs)
    check_vocabulary(data, made, specs)
    return made
