"""Looks at what a given file answers, decides how its answers become scores, and makes a subnet that agrees with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto

from export.existing.as_is import SCORES, AsIs
from export.existing.file_input import FileInput
from export.existing.file_outputs import Activation, FileOutputs, activation_of
from export.existing.given_file import GivenFile
from export.existing.members import Member, class_indices
from export.existing.wrap import wrap
from export.sessions import session
from sensai_serve.errors import ModelError, first_line
from sensai_serve.input_spec import InputSpec
from sensai_serve.merge.rules import LabelTask
from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Array, Inputs, arrays_of, one_by_one

TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-3
"""The largest difference between scores of a subnet and of its file, and where the file computes in half precision."""
COMPARED = 16
"""Inputs that a subnet and its file are compared on, as one batch and one by one."""
_SHAPING = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Transpose")
_LINEAR = ("Gemm", "MatMul", "Conv", "Add")
Numbers = dict[str, Array]


@dataclass(frozen=True)
class Subnet:
    """A given file, and how it becomes a worker's network."""

    given: GivenFile
    takes: FileInput | AsIs
    gives: FileOutputs
    classes: tuple[int, ...]
    """The classes of its scores, in their order."""
    one_by_one: bool = False
    """It takes no batches: a loop runs it for one input after the other."""

    def network(self, input_name: str) -> bytes:
        """The ONNX file, whose input, if it is one, has that name."""
        return wrap(self.given, self.takes, self.gives, input_name, one_by_one=self.one_by_one)

    def whole(self) -> Subnet:
        """The subnet with all of the file's numbers as its scores, those of no class too, and no temperature."""
        columns = tuple(range(2 if self.gives.both else self.gives.width))
        return replace(self, gives=replace(self.gives, columns=columns, temperature=1.0))


def choose_output(
    member: Member, given: GivenFile, numbers: Numbers, expected: int | None, wanted: Sequence[str]
) -> tuple[str, ...]:
    """The outputs of a file that scores are made of.

    Args:
        member: what the user says of the file.
        given: the file.
        numbers: what each output gives for some inputs, [N, all of its numbers].
        expected: how many numbers there are to be; None where that is not known.
        wanted: outputs that the user names for all files.

    Raises:
        ModelError: there is no such output, or it cannot be told which one it is.
    """
    names = member.outputs or tuple(wanted)
    if names:
        if missing := [name for name in names if name not in numbers]:
            raise ModelError(
                f"{given.name} has no output {missing[0]!r} of numbers, expected one of {', '.join(numbers)}"
            )
        return names
    fitting = [name for name, found in numbers.items() if expected in (None, found.shape[1])]
    if not fitting and expected == 2:
        fitting = [name for name, found in numbers.items() if found.shape[1] == 1]
    listed = ", ".join(f"{name} of {found.shape[1]} numbers" for name, found in numbers.items())
    if not fitting:
        others = f" (and {', '.join(given.others)})" if given.others else ""
        way = ": say FILE=class,class, with - for a number of no class" if member.classes is None else ""
        raise ModelError(f"{given.name} gives {listed}{others}, expected {expected}, one for each class{way}")
    if len(fitting) > 1:
        raise ModelError(f"{given.name} gives {listed}, expected one of them: say --output, the name of the one to use")
    return tuple(fitting)


def decide(
    member: Member,
    given: GivenFile,
    takes: FileInput | AsIs,
    numbers: Numbers,
    labels: Sequence[str],
    outputs: tuple[str, ...],
    said: Activation | None,
    task: LabelTask = "single",
) -> Subnet:
    """Decide how a file's numbers become scores.

    Args:
        member: what the user says of the file.
        given: the file.
        takes: the way to its input.
        numbers: what each output gives for some inputs, [N, all of its numbers].
        labels: of all classes.
        outputs: which outputs scores are made of.
        said: what makes scores of numbers, where the user says it for all files.
        task: whether one class is right, or any number of them.

    Raises:
        InputError: the user names classes that there are not.
        ModelError: the file's numbers do not fit its classes, or are not finite.
    """
    joined = np.concatenate([numbers[name] for name in outputs], axis=1)
    if not np.isfinite(joined).all():
        raise ModelError(
            f"{given.name} gives numbers that are not finite, expected scores or logits: see what it is fed"
        )
    width, named = joined.shape[1], class_indices(member, labels)
    both = named is None and width == 1 and len(labels) == 2 and task == "single"
    places = named or _by_label(given, outputs, labels) or tuple(range(len(labels)))
    if len(places) != (2 if both else width):
        raise ModelError(
            f"{given.name} gives {width} numbers, expected {len(places)}, one for each class that it is of"
        )
    classes = tuple(at for at in places if at is not None)
    columns = tuple(at for at, c in enumerate(places) if c is not None)
    found, sums = activation_of(joined)
    if found == "none" and _is_linear(given, outputs):
        found, sums = ("softmax", True) if width > 1 else ("sigmoid", False)
    if found == "softmax" and len(classes) < len(labels) and len(columns) == width:
        found, sums = "sigmoid", False  # of some classes alone: an input may be of none of them
    chosen = member.activation or said
    if task == "multilabel":
        if chosen == "softmax" or (chosen is None and found == "none" and sums):
            raise ModelError(
                f"{given.name} gives scores that add up to 1, one class of which is right, expected a score of each "
                "label by itself for --task multilabel"
            )
        found, sums = ("sigmoid" if found == "softmax" else found), False
    if chosen == "none" and (joined.min() < -1e-3 or joined.max() > 1 + 1e-3):
        raise ModelError(
            f"{given.name} gives numbers of {joined.min():.3g} to {joined.max():.3g}, "
            "expected 0 to 1 for --activation none"
        )
    if chosen is not None and chosen != found:
        found, sums = chosen, chosen == "softmax"
    gives = FileOutputs(outputs, width, found, columns, both, sums or both)
    return Subnet(given, takes, gives, classes)


def build(subnet: Subnet, specs: Sequence[InputSpec], samples: Inputs, numbers: Numbers) -> tuple[Subnet, bytes]:
    """Make the network of a subnet, in a loop where it takes no batches, and check that it agrees with its file.

    Args:
        subnet: what is known of it.
        specs: the bundle's inputs.
        samples: inputs of the bundle, ready for the network.
        numbers: what the file's outputs give for them.

    Raises:
        ModelError: its scores are not those of the file.
    """
    given, some = subnet.given, samples[:COMPARED]
    joined = np.concatenate([numbers[name][:COMPARED] for name in subnet.gives.outputs], axis=1)
    expected = subnet.gives.scores(joined)
    half = any(t.data_type == TensorProto.FLOAT16 for t in given.plain.graph.initializer)
    tolerance, why = HALF_TOLERANCE if half else TOLERANCE, ""
    for looped in (False, True):
        made = replace(subnet, one_by_one=looped)
        try:
            network = made.network(specs[0].name)
            off = difference(network, specs, some, expected)
        except Exception as error:  # onnx and onnxruntime raise whatever they like; what was tried next says more
            why = first_line(error)
            continue
        if off <= tolerance:
            return made, network
        why = f"its scores are {off:.2g} off, expected at most {tolerance:g}"
    raise ModelError(f"{given.name} does not give the same with what is added to it: {why}")


def difference(network: bytes, specs: Sequence[InputSpec], samples: Inputs, expected: Floats) -> float:
    """The largest difference of a network's scores from `expected` [N, k], for N inputs as a batch and one by one."""
    ort = session(network)
    together = ort.run([SCORES], arrays_of(samples, specs))[0]
    single = np.concatenate([ort.run([SCORES], arrays_of(one, specs))[0] for one in one_by_one(samples)])
    if together.shape != expected.shape or single.shape != expected.shape:
        return float("inf")
    return float(np.max([np.abs(together - expected), np.abs(single - expected)], initial=0.0))


def _by_label(given: GivenFile, outputs: tuple[str, ...], labels: Sequence[str]) -> tuple[int, ...] | None:
    """The places among `labels` of the classes that the file itself names; None where it names none, or numbers."""
    named = given.labels.get(outputs[0]) if len(outputs) == 1 else None
    if named is None or (all(label.isdecimal() for label in named) and set(named) != set(labels)):
        return None
    if set(named) != set(labels):
        raise ModelError(
            f"{given.name} names its classes {', '.join(named[:10])}, expected {', '.join(list(labels)[:10])}: let the "
            "labels be those, or say FILE=class,class"
        )
    return tuple(list(labels).index(label) for label in named)


def _is_linear(given: GivenFile, outputs: tuple[str, ...]) -> bool:
    """Whether all of these outputs come from a layer with nothing after it: they are logits, whatever their range."""
    producers: dict[str, onnx.NodeProto] = {out: node for node in given.plain.graph.node for out in node.output}

    def last(value: str) -> str:
        node = producers.get(value)
        while node is not None and node.op_type in _SHAPING:
            node = producers.get(node.input[0])
        return "" if node is None else node.op_type

    return all(last(output) in _LINEAR for output in outputs)
