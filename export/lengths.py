"""Lengths that requests choose: which axes of a network's inputs are free in its ONNX file, and what that changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import InputError
from sensai_serve.input_spec import AXIS, DYNAMIC, InputSpec
from sensai_serve.local import Classifier
from sensai_serve.tensors import Inputs, arrays_of, inputs_of


def with_free_axes(specs: Sequence[InputSpec], chosen: Mapping[str, int], maximum: int | None) -> tuple[InputSpec, ...]:
    """`specs` with an axis that requests choose in each input that `chosen` names; all of them are of one length.

    Args:
        specs: the inputs of a network, of fixed shapes.
        chosen: by the name of an input its axis, counted without the batch's.
        maximum: the length's maximum; the size that the axes have where None.

    Raises:
        InputError: no such input or axis, sizes that differ, or an input that cannot be of another length.
    """
    if maximum is not None and not chosen:
        raise InputError(f"maximum is {maximum}, expected an axis that is dynamic")
    by_name = {spec.name: spec for spec in specs}
    sizes = dict[str, int]()
    for name, axis in chosen.items():
        if name not in by_name:
            raise InputError(f"dynamic: there is no input {name!r}, expected one of {', '.join(by_name)}")
        spec = by_name[name]
        if spec.image is not None:
            raise InputError(f"dynamic: input {name!r} is a picture, which is resized to {list(spec.shape)}")
        if not 0 <= axis < len(spec.shape):
            raise InputError(f"dynamic: input {name!r} has no axis {axis}, expected 0 to {len(spec.shape) - 1}")
        if axis == 0 and max(len(spec.normalisation.mean), len(spec.normalisation.std)) > 1:
            raise InputError(
                f"dynamic: input {name!r} is normalised differently at each place of axis 0, expected another axis, or "
                "data with ?mean=0&std=1"
            )
        sizes[name] = spec.shape[axis]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} of {name!r}" for name, size in sizes.items())
        raise InputError(f"dynamic: axes have different lengths ({listed}), expected one")
    if maximum is not None and maximum < 1:
        raise InputError(f"maximum is {maximum}, expected 1 or more")
    return tuple(
        replace(spec, shape=_freed(spec.shape, chosen[spec.name]), maximum=(maximum or sizes[spec.name],), axes=(AXIS,))
        if spec.name in chosen
        else spec
        for spec in specs
    )


def tried(specs: Sequence[InputSpec]) -> list[int]:
    """Lengths at which a network of free axes is compared with torch: the shortest, one between, the longest."""
    most = max((size for spec in specs for size in spec.maximum), default=0)
    return sorted({1, max(most // 2, 1), most}) if most else []


def cut(inputs: Inputs, specs: Sequence[InputSpec], length: int) -> Inputs:
    """Inputs of another length: their first places, and zeros behind them where they have fewer."""
    arrays = {}
    for name, given in arrays_of(inputs, specs).items():
        array, axis = given, _axis(next(spec for spec in specs if spec.name == name))
        if axis is not None:
            kept = given.take(range(min(length, given.shape[axis])), axis)
            missing = [(0, length - kept.shape[axis] if at == axis else 0) for at in range(kept.ndim)]
            array = np.pad(kept, missing)
        arrays[name] = np.ascontiguousarray(array)
    return inputs_of(arrays, specs)


def compare(classifier: Classifier, specs: Sequence[InputSpec], samples: Inputs) -> dict[str, Any]:
    """What a bundle answers to samples without their padding, beside what it answers with it.

    Networks are trained on inputs of one length, the shorter ones padded. Padding that a network does not leave out is
    a part of what it learnt, and clients must send it.

    Args:
        classifier: the bundle.
        specs: its inputs, with free axes.
        samples: inputs of full length, padded or not.

    Returns:
        As provenance: the ``maximum`` length, how many samples end in ``padded`` places, how many of these are given
        the ``same_label`` without it, and the largest difference of a merged score.
    """
    padded, same, worst = 0, 0, 0.0
    for at, length in enumerate(_own_lengths(samples, specs)):
        one = samples[at : at + 1]
        if length == _length(one, specs):
            continue
        whole, short = (classifier.predict_tensor(inputs) for inputs in (one, cut(one, specs, int(length))))
        padded += 1
        alike = whole.labels == short.labels if whole.sets_labels else whole.class_id == short.class_id
        same += int(alike.all())
        worst = max(worst, float(np.abs(whole.scores - short.scores).max()))
    found: dict[str, Any] = {"maximum": tried(specs)[-1], "samples": len(samples), "padded": padded}
    return found | ({"same_label": same, "largest_difference": worst} if padded else {})


def _own_lengths(inputs: Inputs, specs: Sequence[InputSpec]) -> npt.NDArray[np.int64]:
    """For each input its length [N] without what repeats at its end, in all tensors alike; 1 at least."""
    lengths = np.ones(len(inputs), np.int64)
    for name, array in arrays_of(inputs, specs).items():
        axis = _axis(next(spec for spec in specs if spec.name == name))
        if axis is None:
            continue
        places = np.moveaxis(array, axis, 1).reshape(len(array), array.shape[axis], -1)
        differs = (places != places[:, -1:]).any(axis=2)  # [N, length]
        last = np.where(differs.any(axis=1), differs.shape[1] - differs[:, ::-1].argmax(axis=1), 0)
        # A last place that no other repeats is no padding.
        lengths = np.maximum(lengths, np.where(last == differs.shape[1] - 1, differs.shape[1], np.maximum(last, 1)))
    return lengths


def _length(inputs: Inputs, specs: Sequence[InputSpec]) -> int:
    arrays = arrays_of(inputs, specs)
    return next(int(arrays[spec.name].shape[axis]) for spec in specs if (axis := _axis(spec)) is not None)


def _axis(spec: InputSpec) -> int | None:
    """The number of an input's free axis in a batch [N, ...]; None where it has none."""
    return spec.shape.index(DYNAMIC) + 1 if DYNAMIC in spec.shape else None


def _freed(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], DYNAMIC, *shape[axis + 1 :])
