"""The inputs of requests as arrays: one array where a network has one input, several by name where it has more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import RequestError
from sensai_serve.input_spec import DATATYPES, FLOATS, InputSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class NamedInputs:
    """N inputs of a network that takes several tensors, each an array [N, ...]."""

    arrays: Mapping[str, Array]
    """By the name of the network's input, in the manifest's order; at least one."""

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> NamedInputs:
        """Some of them: a part, or those with these indices."""
        return NamedInputs({name: array[rows] for name, array in self.arrays.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


Inputs = Array | NamedInputs
"""N inputs: [N, ...] of the one tensor that a network takes, or all of several."""


def arrays_of(inputs: Inputs, specs: Sequence[InputSpec]) -> Mapping[str, Array]:
    """The arrays by the names of the network's inputs, as ONNX Runtime takes them."""
    return inputs.arrays if isinstance(inputs, NamedInputs) else {specs[0].name: inputs}


def inputs_of(arrays: Mapping[str, Array], specs: Sequence[InputSpec]) -> Inputs:
    """The inputs of these arrays [N, ...], which are all that the network takes."""
    if len(specs) == 1:
        return arrays[specs[0].name]
    return NamedInputs({spec.name: arrays[spec.name] for spec in specs})


def one_by_one(inputs: Inputs) -> Iterator[Inputs]:
    """Each input alone, [1, ...]."""
    for at in range(len(inputs)):
        yield inputs[at : at + 1]


def contiguous(inputs: Inputs) -> Inputs:
    """The same inputs in arrays that are C-contiguous, as networks and sockets need them."""
    if isinstance(inputs, NamedInputs):
        return NamedInputs({name: np.ascontiguousarray(array) for name, array in inputs.arrays.items()})
    return np.ascontiguousarray(inputs)


def copy_of(inputs: Inputs) -> Inputs:
    """The same inputs in memory of their own."""
    if isinstance(inputs, NamedInputs):
        return NamedInputs({name: array.copy() for name, array in inputs.arrays.items()})
    return inputs.copy()


def example(specs: Sequence[InputSpec], sizes: Mapping[str, int] | None = None, rows: int = 1) -> Inputs:
    """Inputs that every network can run on: ones, which are valid tokens and leave nothing masked.

    Args:
        specs: what the network takes.
        sizes: of dynamic axes by name; the maximum of each that is not named.
        rows: N.
    """
    arrays = {}
    for spec in specs:
        at = iter(spec.axes)
        largest = spec.largest
        shape = tuple(
            largest[axis] if size > 0 else (sizes or {}).get(next(at), largest[axis])
            for axis, size in enumerate(spec.shape)
        )
        one = 0 if spec.vocabulary == 1 else 1
        arrays[spec.name] = np.full((rows, *shape), one, spec.numpy)
    return inputs_of(arrays, specs)


def check_batch(inputs: Inputs, specs: Sequence[InputSpec], max_batch: int) -> None:
    """Check the shapes of a request's inputs; its values were checked when they were decoded.

    Args:
        inputs: N inputs.
        specs: what the network takes.
        max_batch: the largest N.

    Raises:
        RequestError: an input is missing or unknown, a shape does not fit, or inputs differ in N or in a dynamic axis.
    """
    if isinstance(inputs, NamedInputs) is (len(specs) == 1):
        names = ", ".join(spec.name for spec in specs)
        raise RequestError(f"the request has {'several inputs' if len(specs) == 1 else 'one input'}, expected {names}")
    arrays = arrays_of(inputs, specs)
    if set(arrays) != {spec.name for spec in specs}:
        raise RequestError(f"inputs are {', '.join(arrays)}, expected {', '.join(spec.name for spec in specs)}")
    for spec in specs:
        array = arrays[spec.name]
        if array.dtype != spec.numpy:
            raise RequestError(f"input {spec.name!r}: holds {array.dtype}, expected {spec.dtype}")
        if wrong := spec.misfit(array.shape, batch=True):
            raise RequestError(f"input {spec.name!r}: {wrong}")
        if not 1 <= len(array) <= max_batch:
            raise RequestError(f"input {spec.name!r}: N is {len(array)}, expected 1 to {max_batch}")
    agree({spec.name: arrays[spec.name].shape for spec in specs}, specs)


def agree(shapes: Mapping[str, Sequence[int]], specs: Sequence[InputSpec]) -> None:
    """Check that inputs have the same N, and the same size wherever they name the same axis.

    Args:
        shapes: [N, ...] of each input, by name, that fits it.
        specs: what the network takes.

    Raises:
        RequestError: two of them differ.
    """
    if len(specs) == 1:
        return
    seen: dict[str, tuple[int, str]] = {}
    for spec in specs:
        n, *shape = shapes[spec.name]
        for axis, size in {"N": n, **spec.dynamic(shape)}.items():
            known, other = seen.setdefault(axis, (size, spec.name))
            if known != size:
                raise RequestError(
                    f"input {spec.name!r}: {axis} is {size}, expected {known}, which input {other!r} has"
                )


def exact(array: Array, dtype: np.dtype[Any], spec: InputSpec) -> Array:
    """Numbers as another type that has all of them; floating-point numbers are rounded to the nearest.

    Args:
        array: numbers or truth values of any type.
        dtype: the type that is wanted.
        spec: the input that they are for: for its name, and its vocabulary.

    Raises:
        RequestError: no numbers, fractions for whole numbers, or numbers that the type or the vocabulary does not have.
    """
    where, kind = f"input {spec.name!r}", array.dtype.kind
    if kind not in "biuf":
        raise RequestError(f"{where}: holds {array.dtype}, expected numbers")
    if dtype.kind == "b":
        if kind != "b" and not np.isin(array, (0, 1)).all():
            raise RequestError(f"{where}: holds other numbers than 0 and 1, expected true or false")
        return array.astype(np.bool_)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            made = array.astype(dtype)
        if not np.isfinite(made).all():
            raise RequestError(f"{where}: NaN, infinity or too large numbers, expected finite {spec.dtype}")
        return made
    if kind == "f" and not (np.isfinite(array).all() and (np.floor(array) == array).all()):
        raise RequestError(f"{where}: holds fractions, expected whole numbers")
    bounds = np.iinfo(dtype)
    if array.size and (int(array.min()) < bounds.min or int(array.max()) > bounds.max):
        raise RequestError(f"{where}: holds numbers beyond {bounds.min} to {bounds.max}, expected {spec.dtype}")
    made = array.astype(dtype, copy=False)
    check_values(made, spec)
    return made


def check_values(array: Array, spec: InputSpec) -> None:
    """Check values of the input's own datatype.

    Raises:
        RequestError: NaN or infinity, or a number that is not in the vocabulary.
    """
    if spec.dtype in FLOATS:
        # A NaN in the input makes every worker's scores NaN, which would be taken for faults of the workers.
        if not np.isfinite(array).all():
            raise RequestError(f"input {spec.name!r}: NaN or infinity among the numbers, expected finite {spec.dtype}")
    elif spec.vocabulary is not None and array.size:
        least, most = int(array.min()), int(array.max())
        if least < 0 or most >= spec.vocabulary:
            token = least if least < 0 else most
            raise RequestError(
                f"input {spec.name!r}: holds {token}, expected 0 to {spec.vocabulary - 1}, the vocabulary"
            )


def type_of(name: str) -> np.dtype[Any]:
    """The little-endian type of a datatype's bytes in requests and replies. Raises KeyError for an unknown one."""
    return DATATYPES[name].newbyteorder("<")  # type: ignore[index]
