"""An infer request, and the checks of its parameters, for all transports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensai_serve.errors import RequestError
from sensai_serve.merge import WAITS, Wait
from sensai_serve.tensors import Inputs
from sensai_serve.tokenizer import Texts
from serving.v2.shared_memory import RegionPart, Regions
from serving.v2.tensors import OUTPUTS, OutputSpec, shown


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output that the client asks for."""

    name: str
    binary: bool = False
    """Whether its values come as bytes after the JSON, and not as numbers in it."""
    class_count: int = 0
    """Above 0, the reply holds the `class_count` largest values of each row, as ``value:index:label``."""
    region: RegionPart | None = None
    """Shared memory that its values are written to in place of the reply."""


@dataclass(slots=True)
class InferRequest:
    """A decoded request that fits its model."""

    inputs: Inputs | Texts
    """N inputs as the model takes them: C-contiguous, finite, of its vocabulary; or texts to make them of."""
    outputs: tuple[RequestedOutput, ...]
    """The outputs that the reply holds."""
    id: str = ""
    """The client's name for the request; the reply repeats it."""
    wait: Wait | None = None
    """Which copies to wait for; the server's setting where None."""
    timeout_s: float | None = None
    """Deadline in seconds; the server's setting where None."""


def every_output(*, binary: bool, known: Mapping[str, OutputSpec] = OUTPUTS) -> tuple[RequestedOutput, ...]:
    """All outputs of a model, `known`, which a request gets that names none."""
    return tuple(RequestedOutput(name, binary) for name in known)


def parse_outputs(
    outputs: Sequence[tuple[object, Mapping[str, Any]]],
    regions: Regions,
    *,
    binary: bool,
    known: Mapping[str, OutputSpec] = OUTPUTS,
) -> tuple[RequestedOutput, ...]:
    """The requested outputs, each once; all of them where the request names none.

    Args:
        outputs: the name and the parameters of each output. The parameters ``binary_data``, ``classification`` and
            ``shared_memory_...`` are used; others are ignored.
        regions: the registered shared memory.
        binary: whether an output is binary where its parameters do not say.
        known: the outputs of the model.

    Raises:
        RequestError: an unknown output, parameters of wrong types, or a part that is not inside its region.
        UnknownRegionError: a shared memory region that is not registered.
    """
    if not outputs:
        return every_output(binary=binary, known=known)
    chosen: dict[str, RequestedOutput] = {}
    for name, parameters in outputs:
        if not isinstance(name, str) or name not in known:
            raise RequestError(f"output name is {shown(name)}, expected one of {', '.join(known)}")
        if name not in chosen:
            chosen[name] = _output(name, parameters, regions, binary=binary)
    return tuple(chosen.values())


def parse_options(parameters: Mapping[str, Any]) -> tuple[Wait | None, float | None]:
    """The parameters ``wait`` and ``timeout`` of a request; None for one that is not given.

    Returns:
        The wait, and the timeout in seconds (clients give it in microseconds, and 0 for none).

    Raises:
        RequestError: an unknown wait, a timeout that is not a number of microseconds, or a parameter that is no scalar.
    """
    for key, value in parameters.items():
        if not isinstance(value, str | int | float):
            raise RequestError(f"parameter {shown(key)} is {shown(value)}, expected a number, text, true or false")
    wait, timeout = parameters.get("wait"), parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise RequestError(f"timeout is {shown(timeout)}, expected a whole number of microseconds")
    if wait is not None and wait not in WAITS:
        raise RequestError(f"wait is {shown(wait)}, expected one of {', '.join(WAITS)}")
    return wait, timeout / 1e6 or None


def binary_by_default(parameters: Mapping[str, Any]) -> bool:
    """The parameter ``binary_data_output`` of a request: whether outputs are binary that do not say.

    Raises:
        RequestError: the parameter is neither true nor false.
    """
    return _boolean(parameters, "binary_data_output", default=False)


def region_part(parameters: Mapping[str, Any], regions: Regions, where: str) -> RegionPart | None:
    """The shared memory that a tensor's parameters name; None where they name none.

    Args:
        parameters: the tensor's parameters.
        regions: the registered shared memory.
        where: the tensor, for error messages.

    Raises:
        RequestError: parameters of wrong types, or a part that is not inside its region.
        UnknownRegionError: the region is not registered.
    """
    name = parameters.get("shared_memory_region")
    if name is None:
        return None
    offset, byte_size = parameters.get("shared_memory_offset", 0), parameters.get("shared_memory_byte_size")
    if not isinstance(name, str) or type(offset) is not int or type(byte_size) is not int:
        raise RequestError(
            f"{where}: shared_memory_region, _offset and _byte_size are {shown(name)}, {shown(offset)} and "
            f"{shown(byte_size)}, expected text and two whole numbers"
        )
    return regions.part(name, offset, byte_size)


def _output(name: str, parameters: Mapping[str, Any], regions: Regions, *, binary: bool) -> RequestedOutput:
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise RequestError(f"output {name!r}: classification is {shown(count)}, expected a whole number of classes")
    region = region_part(parameters, regions, f"output {name!r}")
    if region is None:
        return RequestedOutput(name, _boolean(parameters, "binary_data", default=binary), count)
    if _boolean(parameters, "binary_data", default=False):
        raise RequestError(f"output {name!r}: has both binary_data and shared_memory_region, expected one of them")
    return RequestedOutput(name, binary=False, class_count=count, region=region)


def _boolean(parameters: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RequestError(f"{key} is {shown(value)}, expected true or false")
    return value
