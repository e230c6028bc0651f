"""Tensors of models with a tokenizer: of texts, BYTES [N] or [N, 1], or of the values that are made of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np

from sensai_serve.errors import RequestError
from sensai_serve.input_spec import InputSpec
from sensai_serve.tensors import Array, Inputs, inputs_of
from sensai_serve.text_spec import TokenizerSpec
from sensai_serve.tokenizer import Texts, checked, decoded_texts
from serving.v2.tensors import check_input, shown, whole_numbers
from serving.v2.values import values_from_bytes, values_from_json

BYTES = "BYTES"
"""The protocol's datatype of texts."""
Wanted = InputSpec | TokenizerSpec
"""What one tensor of a request is: an input of the network, or texts that some of them are made of."""
Values = Array | tuple[str, ...]
"""The values of one tensor: an array [N, ...], or N texts."""
LENGTH_BYTES = 4
"""Bytes of the length, little-endian, in front of each element of a binary tensor."""


def wanted(specs: Sequence[InputSpec], tokenizer: TokenizerSpec | None, names: Container[object]) -> Sequence[Wanted]:
    """The tensors that a request must have: the network's inputs, or texts in place of those that are made of them.

    Args:
        specs: what the network takes.
        tokenizer: the model's; None where it takes no texts.
        names: of the tensors that the request has.
    """
    if tokenizer is None or tokenizer.name not in names:
        return specs
    return tokenizer, *tokenizer.others(specs)


def check_tensor(name: object, datatype: object, shape: object, spec: Wanted, max_batch: int) -> tuple[int, ...]:
    """Check a tensor as a client gives it, and return its shape; that of texts is [N]. Raises as `check_input`."""
    if isinstance(spec, TokenizerSpec):
        return (check_texts(datatype, shape, spec, max_batch),)
    return check_input(name, datatype, shape, spec, max_batch)


def decode_bytes(data: bytes | memoryview, shape: tuple[int, ...], spec: Wanted) -> Values:
    """Decode the bytes of a tensor whose shape has been checked.

    Raises:
        RequestError: another number of values, or values that the input cannot have.
    """
    if isinstance(spec, TokenizerSpec):
        return texts_from_bytes(data, shape[0], spec)
    return values_from_bytes(data, shape, spec)


def decode_json(data: object, shape: tuple[int, ...], spec: Wanted) -> Values:
    """Decode the JSON of a tensor whose shape has been checked. Raises as `decode_bytes`."""
    if isinstance(spec, TokenizerSpec):
        return texts_from_json(data, shape[0], spec)
    return values_from_json(data, shape, spec)


def together(values: Mapping[str, Values], specs: Sequence[InputSpec]) -> Inputs | Texts:
    """The inputs of a request, of all its tensors by name.

    Raises:
        RequestError: texts and the inputs beside them differ in N.
    """
    arrays = {name: array for name, array in values.items() if isinstance(array, np.ndarray)}
    if len(arrays) == len(values):
        return inputs_of(arrays, specs)
    (texts,) = (held for held in values.values() if not isinstance(held, np.ndarray))
    for name, array in arrays.items():
        if len(array) != len(texts):
            raise RequestError(f"input {name!r}: N is {len(array)}, expected {len(texts)}, the number of texts")
    return Texts(texts, arrays)


def most_values(specs: Sequence[InputSpec], tokenizer: TokenizerSpec | None) -> int:
    """The most values of one input in JSON: its numbers; and the characters of its text, which may all be commas."""
    numbers = sum(spec.elements for spec in specs)
    return numbers if tokenizer is None else numbers + tokenizer.most_characters


def check_texts(datatype: object, shape: object, spec: TokenizerSpec, max_batch: int) -> int:
    """Check the datatype and the shape of a tensor of texts as a client gives them.

    Args:
        datatype: its datatype.
        shape: its shape; sizes may be text, which is how Protocol Buffers write 64-bit integers in JSON.
        spec: the model's tokenizer.
        max_batch: the largest N.

    Returns:
        N, the number of texts.

    Raises:
        RequestError: another datatype or shape, or N outside 1 to `max_batch`.
    """
    where = f"input {spec.name!r}"
    if datatype != BYTES:
        raise RequestError(f"{where}: datatype is {shown(datatype)}, expected {BYTES!r}")
    sizes = whole_numbers(shape)
    if sizes is None or len(sizes) not in (1, 2) or sizes[1:] not in ((), (1,)):
        raise RequestError(f"{where}: shape is {shown(shape)}, expected [N] or [N, 1], a text each")
    if not 1 <= sizes[0] <= max_batch:
        raise RequestError(f"{where}: N is {shown(sizes[0])}, expected 1 to {max_batch}")
    return sizes[0]


def texts_from_bytes(data: bytes | memoryview, n: int, spec: TokenizerSpec) -> tuple[str, ...]:
    """Decode the elements of a binary tensor, each the bytes of a text behind their number.

    Raises:
        RequestError: another number of texts, or one that is not UTF-8.
    """
    view, at, found = memoryview(data), 0, list[bytes | memoryview]()
    while at < len(view) and len(found) <= n:
        size = int.from_bytes(view[at : at + LENGTH_BYTES], "little")
        end = at + LENGTH_BYTES + size
        if at + LENGTH_BYTES > len(view) or end > len(view):
            raise RequestError(
                f"input {spec.name!r}: text {len(found)} ends at byte {end}, expected at most {len(view)}, the bytes "
                "of the tensor"
            )
        found.append(view[at + LENGTH_BYTES : end])
        at = end
    if len(found) > n:
        raise RequestError(f"input {spec.name!r}: holds more than {n} texts, expected {n} as its shape says")
    return texts_of(found, n, spec)


def texts_from_json(data: object, n: int, spec: TokenizerSpec) -> tuple[str, ...]:
    """Decode a list of texts, flat or nested.

    Raises:
        RequestError: anything but texts, another number of them, or an empty one.
    """
    where = f"input {spec.name!r}"
    flat = data
    if isinstance(data, list) and data and all(isinstance(one, list) and len(one) == 1 for one in data):
        flat = [one[0] for one in data]
    if not isinstance(flat, list) or not all(isinstance(one, str) for one in flat):
        wrong = shown(next((one for one in flat if not isinstance(one, str)), None) if isinstance(flat, list) else flat)
        raise RequestError(f"{where}: data holds {wrong}, expected a list of texts")
    _check_number(flat, n, spec)
    return checked(flat, where)


def texts_of(data: Iterable[bytes | memoryview], n: int, spec: TokenizerSpec) -> tuple[str, ...]:
    """Texts of their bytes in UTF-8.

    Raises:
        RequestError: another number of them, one that is not UTF-8, or an empty one.
    """
    found = list(data)
    _check_number(found, n, spec)
    return decoded_texts(found, spec)


def _check_number(found: Sequence[object], n: int, spec: TokenizerSpec) -> None:
    if len(found) != n:
        raise RequestError(f"input {spec.name!r}: data holds {len(found)} texts, expected {n} as its shape says")
