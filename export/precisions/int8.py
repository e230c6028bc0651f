"""``int8``: eight bits, by static quantisation. Faster on CPUs where convolutions are wide, above all with VNNI.

QuantizeLinear and DequantizeLinear stand around every operator that ONNX Runtime has an integer kernel for; it fuses
them. Weights are symmetric, with a scale per output channel; activations asymmetric, their ranges the least and the
greatest values that a sample of the training part causes. (Jacob et al., CVPR 2018, https://arxiv.org/abs/1712.05877.)

Weights use seven of the eight bits: x86 CPUs without VNNI add pairs of products in sixteen, where eight would saturate,
and a bundle must give the same scores, and pass its own golden check, on whatever CPU it is served.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from export.onnx_files import finish, quiet
from export.precisions import Precision, Tolerance, output_nodes
from sensai_serve.tensors import Array, Inputs, NamedInputs

BATCH = 32


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, inputs: Inputs) -> None:
        arrays = inputs.arrays if isinstance(inputs, NamedInputs) else {name: inputs}
        self._batches: Iterator[dict[str, Array]] = (
            {key: array[start : start + BATCH] for key, array in arrays.items()}
            for start in range(0, len(inputs), BATCH)
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def convert(data: bytes, inputs: Inputs) -> bytes:
    """Convert an FP32 ONNX file to this precision; see `export.precisions.Precision`."""
    model = onnx.load_from_string(data)
    add_pre_process_metadata(model)  # what that stands for, folding batch normalisation, torch's exporter has done
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "quantised.onnx"
        quantize_static(
            model,
            file,
            _Batches(model.graph.input[0].name, inputs),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=output_nodes(model),
        )
        return finish(onnx.load(file))


precision = Precision(convert, Tolerance(worst=0.5, mean=3e-2), calibration=256)
