"""Decodes HTTP infer requests for models of several inputs, other datatypes than FP32, dynamic axes, or texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sensai_serve.errors import RequestError
from sensai_serve.input_spec import InputSpec
from sensai_serve.merge import Wait
from sensai_serve.tensors import agree
from sensai_serve.text_spec import TokenizerSpec
from serving.v2.decode import KNOWN_BYTES, KNOWN_HEADERS, optional_object, requested_outputs, split
from serving.v2.json_object import parse_object
from serving.v2.request import (
    InferRequest,
    RequestedOutput,
    binary_by_default,
    every_output,
    parse_options,
    region_part,
)
from serving.v2.shared_memory import Regions
from serving.v2.tensors import OUTPUTS, OutputSpec, shown
from serving.v2.texts import (
    Values,
    Wanted,
    check_tensor,
    decode_bytes,
    decode_json,
    most_values,
    together,
    wanted,
)
from serving.v2.values import values_from_bytes


class Named(Protocol):
    """Anything that has a name."""

    @property
    def name(self) -> str:
        """Its name."""


_Spec = TypeVar("_Spec", bound=Named)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the bytes of one input are after the JSON."""

    spec: Wanted
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Known:
    """A parsed JSON header all of whose inputs are binary."""

    places: tuple[_Place, ...]
    outputs: tuple[RequestedOutput, ...]
    wait: Wait | None
    timeout_s: float | None


class NamedDecoder:
    """Decodes infer requests for one model, and caches their JSON headers; see `serving.v2.decode.Decoder`."""

    def __init__(
        self,
        specs: Sequence[InputSpec],
        max_batch: int,
        regions: Regions,
        tokenizer: TokenizerSpec | None = None,
        outputs: Mapping[str, OutputSpec] = OUTPUTS,
    ) -> None:
        """Start with an empty cache.

        Args:
            specs: the model's inputs.
            max_batch: the largest N.
            regions: the registered shared memory.
            tokenizer: makes some of the inputs of texts, which may be sent in place of these; None: it takes no texts.
            outputs: the outputs of the model.
        """
        self._outputs = outputs
        self._specs = tuple(specs)
        self._tokenizer = tokenizer
        self._max_batch = max_batch
        self._regions = regions
        self._known: dict[bytes, _Known] = {}

    def decode(self, body: bytes | memoryview, header_length: int | None) -> InferRequest:
        """Decode one request.

        Raises:
            RequestError: the request does not fit the model; the message says what was wrong and what was expected.
            UnknownRegionError: a shared memory region that is not registered.
        """
        header, tail = split(memoryview(body), header_length)
        if header_length == 0:
            return self._raw(memoryview(body))
        short = tail is not None and len(header) <= KNOWN_BYTES
        known = self._known.get(bytes(header)) if short else None
        if known is not None and tail is not None and len(tail) == known.places[-1].end:
            inputs = together(_from_tail(known.places, tail), self._specs)
            return InferRequest(inputs, known.outputs, "", known.wait, known.timeout_s)
        request, places = self._parse(header, tail)
        if short and places and not request.id and all(output.region is None for output in request.outputs):
            if len(self._known) >= KNOWN_HEADERS:
                self._known.clear()
            self._known[bytes(header)] = _Known(places, request.outputs, request.wait, request.timeout_s)
        return request

    def _raw(self, body: memoryview) -> InferRequest:
        """Triton's raw request: the body is the values of one input."""
        spec = self._specs[0]
        if len(self._specs) > 1 or spec.maximum:
            raise RequestError(
                "the request is raw, expected JSON: the model takes "
                + (f"{len(self._specs)} inputs" if len(self._specs) > 1 else f"{spec.name} {spec.batch_described}")
            )
        return InferRequest(
            values_from_bytes(body, (1, *spec.shape), spec), every_output(binary=True, known=self._outputs)
        )

    def _parse(self, header: memoryview, tail: memoryview | None) -> tuple[InferRequest, tuple[_Place, ...]]:
        """The request, and where its inputs lie if all of them are binary."""
        most = self._max_batch * most_values(self._specs, self._tokenizer)
        request = parse_object(header, numbers=0 if tail else most)
        parameters = optional_object(request, "parameters", "")
        wait, timeout_s = parse_options(parameters)
        request_id = request.get("id")
        if not isinstance(request_id, str | None):
            raise RequestError(f"id is {shown(request_id)}, expected text")
        given = request.get("inputs")
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise RequestError(f"inputs is {shown(given)}, expected a list of objects, {_names(self._specs)}")
        values, places, shapes, at = dict[str, Values](), list[_Place](), dict[str, tuple[int, ...]](), 0
        tensors = matched_or_texts(self._specs, self._tokenizer, [(one.get("name"), one) for one in given])
        for spec, tensor in tensors:
            shape = shapes[spec.name] = check_tensor(
                tensor.get("name"), tensor.get("datatype"), tensor.get("shape"), spec, self._max_batch
            )
            size = self._size(spec, tensor, tail, at)
            if size is None:
                values[spec.name] = self._elsewhere(spec, tensor, shape)
            else:
                places.append(_Place(spec, shape, at, at + size))
                at += size
        agree(shapes, [spec for spec, _ in tensors if isinstance(spec, InputSpec)])
        if tail is not None and at != len(tail):
            raise RequestError(f"{len(tail)} bytes after the JSON, expected {at}, the sum of every binary_data_size")
        values |= _from_tail(places, tail or memoryview(b""))
        outputs = requested_outputs(
            request.get("outputs"), self._regions, binary=binary_by_default(parameters), known=self._outputs
        )
        made = InferRequest(together(values, self._specs), outputs, request_id or "", wait, timeout_s)
        return made, tuple(places) if len(places) == len(tensors) else ()

    def _size(self, spec: Wanted, tensor: Mapping[str, Any], tail: memoryview | None, at: int) -> int | None:
        """Bytes of a tensor after the JSON; None where it is elsewhere."""
        where = f"input {spec.name!r}"
        parameters = optional_object(tensor, "parameters", f"{where}: ")
        size = parameters.get("binary_data_size")
        in_memory = parameters.get("shared_memory_region") is not None
        check_one_way(
            where,
            data=tensor.get("data") is not None,
            binary_data_size=size is not None,
            shared_memory_region=in_memory,
        )
        if size is None:
            return None
        if tail is None:
            raise RequestError(
                f"{where}: binary_data_size is given, expected the header Inference-Header-Content-Length too"
            )
        if type(size) is not int or not 0 <= size <= len(tail) - at:
            raise RequestError(
                f"{where}: binary_data_size is {shown(size)}, expected at most {len(tail) - at}, the bytes that are "
                "left after the JSON"
            )
        return size

    def _elsewhere(self, spec: Wanted, tensor: Mapping[str, Any], shape: tuple[int, ...]) -> Values:
        """The values of a tensor that are in shared memory, or in the JSON."""
        where = f"input {spec.name!r}"
        region = region_part(optional_object(tensor, "parameters", f"{where}: "), self._regions, where)
        if region is not None:
            return decode_bytes(region.read(), shape, spec)
        return decode_json(tensor["data"], shape, spec)


def matched_or_texts(
    specs: Sequence[InputSpec], tokenizer: TokenizerSpec | None, given: Sequence[tuple[object, Any]]
) -> list[tuple[Wanted, Any]]:
    """The input that each given tensor is, or the texts that some inputs are made of; see `matched`."""
    expected = wanted(specs, tokenizer, [name for name, _ in given])
    takes_either = tokenizer is not None and expected is specs
    or_texts = f"; or {tokenizer.name!r}, texts that tokens are made of" if tokenizer and takes_either else ""
    return matched(expected, given, or_texts)


def matched(specs: Sequence[_Spec], given: Iterable[tuple[object, Any]], also: str = "") -> list[tuple[_Spec, Any]]:
    """The input that each given tensor is, in the order in which they are given.

    Args:
        specs: the model's inputs.
        given: the name of each tensor, and the tensor.
        also: what errors say beside the names that are expected.

    Raises:
        RequestError: an input is missing, unknown, or there twice.
    """
    by_name = {spec.name: spec for spec in specs}
    found: dict[str, tuple[_Spec, Any]] = {}
    for name, tensor in given:
        if not isinstance(name, str) or name not in by_name:
            raise RequestError(f"input name is {shown(name)}, expected {_names(specs)}{also}")
        if name in found:
            raise RequestError(f"input {name!r} is there twice, expected {_names(specs)}, each once")
        found[name] = by_name[name], tensor
    if missing := [name for name in by_name if name not in found]:
        raise RequestError(f"input {missing[0]!r} is missing, expected {_names(specs)}{also}")
    return list(found.values())


def check_one_way(where: str, **given: bool) -> None:
    """Check that the values of a tensor are given in exactly one way.

    Args:
        where: the tensor, for the error.
        given: by the name of each way, whether they are given so.

    Raises:
        RequestError: in none, or in several.
    """
    ways = [way for way, there in given.items() if there]
    if len(ways) != 1:
        *first, last = given
        raise RequestError(
            f"{where}: has {' and '.join(ways) or 'no values'}, expected one of {', '.join(first)} and {last}"
        )


def _from_tail(places: Iterable[_Place], tail: memoryview) -> dict[str, Values]:
    return {p.spec.name: decode_bytes(tail[p.start : p.end], p.shape, p.spec) for p in places}


def _names(specs: Sequence[Named]) -> str:
    return ", ".join(repr(spec.name) for spec in specs)
