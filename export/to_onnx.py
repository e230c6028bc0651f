"""Converts a torch network to the bytes of an ONNX file that holds nothing but the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from export.onnx_files import finish, quiet
from export.recurrent import as_operators
from sensai_serve.errors import ModelError, first_line
from sensai_serve.preprocess import InputSpec
from sensai_serve.tensors import Inputs, NamedInputs, example

OUTPUT = "scores"


def to_onnx(model: nn.Module, specs: Sequence[InputSpec]) -> bytes:
    """Export a network.

    Args:
        model: gives scores [N, k], the activation included, for what `tensors` makes of inputs.
        specs: its inputs, by which the graph's are named; axes that are dynamic there are free in the file.

    Returns:
        An ONNX file: the inputs, output ``scores``, N free, weights inside; without the names of source files and the
        lines of code that the exporter leaves in it.

    Raises:
        ModelError: the network cannot be exported.
    """
    model = model.cpu().eval()
    free = [axis for spec in specs for axis in spec.axes]
    try:
        with quiet(), torch.no_grad(), as_operators(model):
            program = torch.onnx.export(
                model,
                # 2: a batch axis of 1 would be taken for a constant
                (tensors(example(specs, rows=2)),),
                dynamo=True,
                dynamic_shapes=(_free_axes(specs),),
                input_names=[spec.name for spec in specs],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except ModelError:
        raise
    except Exception as error:  # the exporter's own failures are of any kind
        if (own := _own_error(error)) is not None:
            raise own from None
        raise ModelError(
            f"export: the network has something that ONNX export cannot express ({first_line(error)})"
            + (f", expected one that takes any {' and '.join(dict.fromkeys(free))}" if free else "")
        ) from None
    if program is None:
        raise ModelError("export: torch gave no ONNX program")
    return finish(program.model_proto)


def tensors(inputs: Inputs) -> Tensor | tuple[Tensor, ...]:
    """Inputs as a network of ours takes them: one tensor, or a tuple of several in the manifest's order."""
    if isinstance(inputs, NamedInputs):
        return tuple(torch.from_numpy(array) for array in inputs.arrays.values())
    return torch.from_numpy(inputs)


def _free_axes(specs: Sequence[InputSpec]) -> Any:
    """For each input the axes that are free in the file, by number; inputs that name the same axis share it."""
    shared = {name: torch.export.Dim(name, max=most) for spec in specs for name, most in _named(spec).items()}
    n = torch.export.Dim("N")
    found: list[dict[int, Any]] = []
    for spec in specs:
        names = iter(spec.axes)
        found.append({0: n} | {at: shared[next(names)] for at, size in enumerate(spec.shape, start=1) if size < 0})
    return tuple(found) if len(found) > 1 else found[0]


def _named(spec: InputSpec) -> dict[str, int]:
    return dict(zip(spec.axes, spec.maximum, strict=True))


def _own_error(error: BaseException) -> ModelError | None:
    """The error of ours that the exporter wrapped in one of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModelError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
