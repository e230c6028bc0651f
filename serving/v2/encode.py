"""Encodes an answer as the body of an HTTP infer reply, with the binary tensor and classification extensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from sensai_serve.errors import RequestError
from sensai_serve.merge import Answer
from serving.v2.request import InferRequest, RequestedOutput
from serving.v2.shared_memory import RegionPart
from serving.v2.tensors import ALL_OUTPUTS


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of a reply."""

    datatype: str
    shape: list[int]
    data: npt.NDArray[Any] | list[str]
    """An array of shape `shape`, or the elements of a BYTES tensor in row-major order."""

    def to_bytes(self) -> bytes:
        """The values as little-endian bytes in row-major order."""
        return self.data.tobytes() if isinstance(self.data, np.ndarray) else text_bytes(self.data)

    def write(self, region: RegionPart, name: str) -> None:
        """Write the values to shared memory; `name` is the output's, for the error.

        Raises:
            RequestError: `region` is too small, or its object has become so.
        """
        if isinstance(self.data, np.ndarray):
            raw = np.ascontiguousarray(self.data).reshape(-1).view(np.uint8).data
        else:
            raw = memoryview(self.to_bytes())
        if len(raw) > region.byte_size:
            raise RequestError(
                f"output {name!r}: {len(raw)} bytes, the shared memory given for them holds {region.byte_size}"
            )
        region.write(raw)


def encode_response(
    request: InferRequest, answer: Answer, *, name: str, version: str, labels: Sequence[str]
) -> tuple[bytes, int | None]:
    """Encode a reply's body.

    Args:
        request: the request, which says what outputs are wanted in what form.
        answer: the answer of N inputs.
        name: the model's name.
        version: the model's version.
        labels: the labels of the C classes, for the classification extension.

    Returns:
        The body, and the length in bytes of the JSON in front of binary tensors; None where the body is JSON alone.

    Raises:
        RequestError: an output does not fit into the shared memory given for it.
    """
    outputs, buffers = [], []
    for output in request.outputs:
        tensor = describe(output, answer, labels)
        entry: dict[str, Any] = {"name": output.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if output.region is not None:
            tensor.write(output.region, output.name)
        elif output.binary:
            raw = tensor.to_bytes()
            entry["parameters"] = {"binary_data_size": len(raw)}
            buffers.append(raw)
        else:
            entry["data"] = tensor.data.reshape(-1) if isinstance(tensor.data, np.ndarray) else tensor.data
        outputs.append(entry)
    reply: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id:
        reply["id"] = request.id
    reply["parameters"] = reply_parameters(answer)
    reply["outputs"] = outputs
    header = orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((header, *buffers)), len(header)) if buffers else (header, None)


def reply_parameters(answer: Answer) -> dict[str, str | bool]:
    """The reply's parameters, which say how the copies were merged."""
    said: dict[str, str | bool] = {
        "arrived": ",".join(map(str, answer.arrived)),
        "missing": ",".join(map(str, answer.missing)),
        "decided_early": answer.decided_early,
        "exact": answer.exact,
        "complete": answer.complete,
        "degraded": answer.degraded,
        "elected": answer.elected,
    }
    if answer.sets_labels:
        said["undecided"] = ",".join(map(str, answer.undecided))
        said["abstained"] = ",".join(map(str, answer.abstained))
    return said


def classify(array: npt.NDArray[Any], count: int, labels: Sequence[str]) -> list[list[str]]:
    """The largest values of each row as ``value:index:label``, largest first; equal values by index.

    Args:
        array: [N, C], or [N] for rows of one value, which has no label.
        count: number of values per row; all of them where there are fewer.
        labels: the labels of the C classes.

    Returns:
        N rows of min(count, C) texts.
    """
    rows = array.reshape(len(array), -1)
    if rows.dtype.kind == "b":
        rows = rows.astype(np.int8)
    suffixes = [f":{c}:{label}" for c, label in enumerate(labels)] if array.ndim == 2 else [":0"]
    largest = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    form = ".6f" if array.dtype.kind == "f" else "d"
    return [
        [f"{row[c]:{form}}{suffixes[c]}" for c in order]
        for row, order in zip(rows.tolist(), largest.tolist(), strict=True)
    ]


def text_bytes(texts: Sequence[str]) -> bytes:
    """A BYTES tensor: each element after its length as 4 bytes, little-endian."""
    encoded = [text.encode() for text in texts]
    return b"".join(part for text in encoded for part in (len(text).to_bytes(4, "little"), text))


def describe(output: RequestedOutput, answer: Answer, labels: Sequence[str]) -> OutputTensor:
    """The tensor that a requested output has in the reply."""
    spec = ALL_OUTPUTS[output.name]
    array = spec.of(answer)
    if not output.class_count:
        return OutputTensor(spec.datatype, list(array.shape), array)
    rows = classify(array, output.class_count, labels)
    return OutputTensor("BYTES", [len(rows), len(rows[0])], [text for row in rows for text in row])
