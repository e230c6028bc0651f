"""An answer as the body of an HTTP infer reply, with the binary tensor and classification extensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from sensai_serve.merge import Answer
from serving.v2.request import InferRequest, RequestedOutput
from serving.v2.tensors import OUTPUTS


def encode_response(
    request: InferRequest, answer: Answer, *, name: str, version: str, labels: Sequence[str]
) -> tuple[bytes, int | None]:
    """The reply's body.

    Args:
        request: which outputs, and how.
        answer: what the gateway says.
        name: the model's.
        version: the model's.
        labels: of the classes, for the classification extension.

    Returns:
        The body, and the length of the JSON in front of binary tensors; None where the body is JSON alone.
    """
    outputs, buffers = [], []
    for output in request.outputs:
        described, data = _describe(output, answer, labels)
        if output.binary:
            raw = _binary(data)
            described["parameters"] = {"binary_data_size": len(raw)}
            buffers.append(raw)
        else:
            described["data"] = data.reshape(-1) if isinstance(data, np.ndarray) else data
        outputs.append(described)
    reply: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id:
        reply["id"] = request.id
    reply["parameters"] = reply_parameters(answer)
    reply["outputs"] = outputs
    header = orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((header, *buffers)), len(header)) if buffers else (header, None)


def reply_parameters(answer: Answer) -> dict[str, str | bool]:
    """What the merge did."""
    return {
        "arrived": ",".join(map(str, answer.arrived)),
        "missing": ",".join(map(str, answer.missing)),
        "decided_early": answer.decided_early,
        "complete": answer.complete,
        "degraded": answer.degraded,
        "elected": answer.elected,
    }


def classify(array: npt.NDArray[Any], count: int, labels: Sequence[str]) -> list[list[str]]:
    """The largest values of each row as ``value:index:label``, largest first; equal values by index.

    Args:
        array: [N, C], or [N] for rows of one value, which has no label.
        count: how many per row; all where there are fewer.
        labels: of the C classes.
    """
    rows = array.reshape(len(array), -1)
    suffixes = [f":{c}:{label}" for c, label in enumerate(labels)] if array.ndim == 2 else [":0"]
    largest = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    form = ".6f" if array.dtype.kind == "f" else "d"
    return [
        [f"{row[c]:{form}}{suffixes[c]}" for c in order]
        for row, order in zip(rows.tolist(), largest.tolist(), strict=True)
    ]


def text_bytes(texts: Sequence[str]) -> bytes:
    """Elements of a BYTES tensor, each after its length in 4 bytes, little-endian."""
    encoded = [text.encode() for text in texts]
    return b"".join(part for text in encoded for part in (len(text).to_bytes(4, "little"), text))


def _describe(
    output: RequestedOutput, answer: Answer, labels: Sequence[str]
) -> tuple[dict[str, Any], npt.NDArray[Any] | list[str]]:
    spec = OUTPUTS[output.name]
    array = spec.of(answer)
    if not output.class_count:
        return {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}, array
    rows = classify(array, output.class_count, labels)
    shape = [len(rows), len(rows[0])]
    return {"name": spec.name, "datatype": "BYTES", "shape": shape}, [text for row in rows for text in row]


def _binary(data: npt.NDArray[Any] | list[str]) -> bytes:
    return data.tobytes() if isinstance(data, np.ndarray) else text_bytes(data)
