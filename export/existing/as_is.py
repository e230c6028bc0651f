"""Files whose inputs a bundle takes as they are: several of them, tokens and truth values, axes of any size.

Nothing is put in front of such a file: pictures, normalisation and other layouts are for one input of numbers, which
`file_input` has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from export.existing.given_file import GivenFile, axes_of
from export.existing.options import BundleOptions
from export.vocabulary import vocabulary_of
from sensai_serve.errors import InputError, ModelError
from sensai_serve.input_spec import AXIS, DYNAMIC, FLOATS, ONNX_TYPES, InputSpec
from sensai_serve.tensors import Array, Inputs, arrays_of, inputs_of

INPUT, SCORES = "input", "scores"
LENGTH = 16
"""The size of dynamic axes of random samples, where they may be so large."""
_WHOLE = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)


@dataclass(frozen=True)
class AsIs:
    """The way from a bundle's inputs to those of one file: each is the same."""

    specs: tuple[InputSpec, ...]
    """The bundle's inputs."""
    names: tuple[str, ...]
    """What the file calls each of them."""

    def __call__(self, inputs: Inputs) -> dict[str, Array]:
        """The file's inputs by its own names."""
        arrays = arrays_of(inputs, self.specs)
        return {own: arrays[spec.name] for own, spec in zip(self.names, self.specs, strict=True)}

    def described(self) -> str:
        """What the file takes, in words."""
        return " and ".join(f"{spec.name} {spec.dtype} {spec.described}" for spec in self.specs)

    def values(self, batch: str) -> list[ValueInfoProto]:
        """The inputs of the subnet's graph.

        Args:
            batch: name of the batch axis.
        """
        return [_value(spec, [batch]) for spec in self.specs]

    def scanned(self, names: Sequence[str]) -> list[ValueInfoProto]:
        """The inputs of a graph that a loop runs for one input after the other: no batch axis, and other names."""
        return [_value(replace(spec, name=name), []) for spec, name in zip(self.specs, names, strict=True)]

    def largest(self, given: GivenFile) -> Mapping[str, tuple[int, ...]]:
        """The largest shape of each input of the file, by its own names."""
        return {own: spec.largest for own, spec in zip(self.names, self.specs, strict=True)}


def as_is(files: Sequence[GivenFile], options: BundleOptions) -> tuple[AsIs, ...] | None:
    """What each file takes, if the bundle takes inputs as the files do; None for files of one input of numbers.

    Raises:
        ModelError: an input is of a type that cannot be served, or files take different inputs.
        InputError: what the user says does not fit.
    """
    as_numbers = options.normalised or options.resize or options.crop or options.image in ("RGB", "L")
    many = any(len(one.inputs) > 1 for one in files)
    whole = any(one.element_type in _WHOLE for one in files) and not as_numbers
    free = options.maximum is not None
    if not (many or whole or free):
        return None
    if many and options.shape is not None:
        raise InputError(
            "--shape is the shape of one input, and a file takes several: expected --maximum for free axes"
        )
    found = [_specs(one, options) for one in files]
    names = [tuple(spec.name for spec in specs) for specs in found]
    if all(len(specs) == 1 for specs in found):
        same = len({own for (own,) in names}) == 1 and names[0][0] != SCORES
        found = [(replace(specs[0], name=names[0][0] if same else INPUT),) for specs in found]
    first = found[0]
    for one, specs in zip(files, found, strict=True):
        by_name = {spec.name: _without_vocabulary(spec) for spec in specs}
        if by_name != {spec.name: _without_vocabulary(spec) for spec in first}:
            taken = " and ".join(f"{spec.name} {spec.dtype} {spec.described}" for spec in specs)
            wanted = " and ".join(f"{spec.name} {spec.dtype} {spec.described}" for spec in first)
            raise ModelError(f"{one.name} takes {taken}, expected {wanted}, as {files[0].name} does")
    common = tuple(replace(spec, vocabulary=_smallest(spec.name, found)) for spec in first)
    order = [{spec.name: own for spec, own in zip(s, n, strict=True)} for s, n in zip(found, names, strict=True)]
    return tuple(AsIs(common, tuple(own[spec.name] for spec in common)) for own in order)


def samples(specs: Sequence[InputSpec], n: int, seed: int, length: int = LENGTH) -> Inputs:
    """Random inputs of a bundle.

    Args:
        specs: what it takes.
        n: how many.
        seed: of the draw.
        length: of dynamic axes; their maximum where that is less.
    """
    random, arrays = np.random.default_rng(seed), {}
    for spec in specs:
        most = iter(spec.maximum)
        shape = (n, *(min(length, next(most)) if size == DYNAMIC else size for size in spec.shape))
        if spec.dtype in FLOATS:
            array: Array = random.normal(size=shape)
        elif spec.vocabulary is not None:
            array = random.integers(0, spec.vocabulary, shape)
        elif len(specs) > 1:
            array = np.ones(shape)  # a mask or the like beside another input: all of that counts
        else:
            array = random.integers(0, 2, shape)  # indices, of which more may not exist
        arrays[spec.name] = array.astype(spec.numpy)
    return inputs_of(arrays, specs)


def _specs(given: GivenFile, options: BundleOptions) -> tuple[InputSpec, ...]:
    most = _maxima(given, options)
    made = []
    for value in given.inputs:
        element = value.type.tensor_type.elem_type
        if element not in ONNX_TYPES:
            kind = TensorProto.DataType.Name(element).lower()
            raise ModelError(f"{given.name} takes {value.name} of {kind}, expected {', '.join(ONNX_TYPES.values())}")
        if value.name == SCORES and len(given.inputs) > 1:
            raise ModelError(f"{given.name} has an input called {SCORES}, as outputs are called: give it another name")
        axes = axes_of(value)[1:]
        named = tuple(_axis(value, at) for at, size in enumerate(axes, 1) if size is None)
        if options.shape is not None and len(options.shape) == len(axes):
            axes, named = tuple(options.shape), ()
        made.append(
            InputSpec(
                shape=tuple(DYNAMIC if size is None else size for size in axes),
                name=value.name,
                dtype=ONNX_TYPES[element],
                maximum=tuple(most[name] for name in named),
                axes=named,
                vocabulary=None if ONNX_TYPES[element] in (*FLOATS, "BOOL") else vocabulary_of(given.plain, value.name),
            )
        )
    return tuple(made)


def _maxima(given: GivenFile, options: BundleOptions) -> dict[str, int]:
    """The largest size of each free axis of a file's inputs, by the axis' name."""
    if options.shape is not None:
        return {}
    free = [_axis(value, at) for value in given.inputs for at, size in enumerate(axes_of(value)) if at and size is None]
    names = list(dict.fromkeys(free))
    said = options.maximum or ()
    if not names:
        return {}
    if len(said) not in (1, len(names)):
        listed = ", ".join(names)
        raise ModelError(
            f"{given.name} leaves {listed} to each request, expected the largest size of each: say --maximum, one for "
            "all or one for each"
        )
    return dict(zip(names, said * len(names) if len(said) == 1 else said, strict=True))


def _axis(value: ValueInfoProto, at: int) -> str:
    """The name of a free axis: the file's own, or one of ours."""
    own: str = value.type.tensor_type.shape.dim[at].dim_param
    free = [axis for axis, size in enumerate(axes_of(value)) if axis and size is None]
    return own or (AXIS if len(free) == 1 else f"axis {at}")


def _value(spec: InputSpec, batch: Sequence[str]) -> ValueInfoProto:
    named, types = iter(spec.axes), {datatype: number for number, datatype in ONNX_TYPES.items()}
    sizes = [next(named) if size == DYNAMIC else size for size in spec.shape]
    return helper.make_tensor_value_info(spec.name, types[spec.dtype], [*batch, *sizes])


def _smallest(name: str, found: Sequence[Sequence[InputSpec]]) -> int | None:
    """The smallest vocabulary of an input that some file has: a token must be known to all of them."""
    known = [s.vocabulary for specs in found for s in specs if s.name == name and s.vocabulary is not None]
    return min(known, default=None)


def _without_vocabulary(spec: InputSpec) -> InputSpec:
    return replace(spec, vocabulary=None)
