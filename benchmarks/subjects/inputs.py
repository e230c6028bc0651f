"""Labelled inputs that benchmarks send: those of an .npz file, or a bundle's golden samples, which have no labels."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.bundles import Bundle, atomic_file
from sensai_serve.errors import DataError, InputError
from sensai_serve.preprocess import Floats, InputSpec, from_image, normalise

JPEG_QUALITY = 90


@dataclass(frozen=True)
class LabelledInputs:
    """Inputs ready for the network, and their true labels."""

    inputs: Floats
    """[N, *shape], normalised."""
    labels: npt.NDArray[np.int64] | None
    """[N]; None where they are not known."""

    def samples(self, limit: int | None = None) -> list[Floats]:
        """The inputs one by one, FP32 [1, *shape] each."""
        return [np.ascontiguousarray(one[None]) for one in self.inputs[:limit]]

    def head(self, count: int) -> LabelledInputs:
        """The first `count` of them."""
        return LabelledInputs(self.inputs[:count], None if self.labels is None else self.labels[:count])


def write_labelled(path: Path, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    """Keep raw inputs `x` [N, *shape] and labels `y` [N] as an .npz file that `read_labelled` takes."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, x=x, y=np.asarray(y, np.int64))


def read_labelled(path: Path, spec: InputSpec, n_classes: int) -> LabelledInputs:
    """Labelled inputs of an .npz file with raw ``x`` [N, *shape] and ``y`` [N], or ``x_test`` and ``y_test``.

    Raises:
        DataError: no such file, or arrays that do not fit the model.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no readable .npz file of arrays ({error})") from None
    return labelled_from_arrays(str(path), arrays, spec, n_classes)


def labelled_from_arrays(
    name: str, arrays: Mapping[str, npt.NDArray[Any]], spec: InputSpec, n_classes: int
) -> LabelledInputs:
    """Labelled inputs from raw arrays. Arguments and errors as `read_labelled`."""
    x, y = (arrays.get(f"{key}_test", arrays.get(key)) for key in ("x", "y"))
    if x is None or y is None or x.ndim < 1 or y.ndim != 1 or len(x) != len(y) or not len(x):
        raise DataError(f"{name} holds {', '.join(arrays) or 'nothing'}, expected x [N, ...] and y [N], N above 0")
    if x.shape[1:] != spec.shape:
        raise DataError(f"{name}: x has shape {list(x.shape)}, expected [N, {', '.join(map(str, spec.shape))}]")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= n_classes:
        raise DataError(f"{name}: y is {y.dtype} {y.min()} to {y.max()}, expected whole numbers 0 to {n_classes - 1}")
    return LabelledInputs(normalise(x, spec), y.astype(np.int64))


def as_pictures(inputs: LabelledInputs, spec: InputSpec) -> tuple[LabelledInputs, list[bytes]]:
    """Write inputs as JPEG files, and read these as a server does.

    Args:
        inputs: inputs of a network that takes pictures.
        spec: what the network expects.

    Returns:
        The inputs that the files hold, for a JPEG is not what it was made of; and the files.

    Raises:
        InputError: the network takes no pictures.
    """
    from PIL import Image

    image, norm = spec.image, spec.normalisation
    if image is None:
        raise InputError(f"the bundle takes {list(spec.shape)} numbers, expected pictures to send as JPEG")
    column = (-1, 1, 1)
    raw = inputs.inputs * np.reshape(norm.std, column) + np.reshape(norm.mean, column)
    pixels = np.clip(np.rint(raw / norm.scale), 0, 255).astype(np.uint8)
    files = []
    for one in pixels:
        file = io.BytesIO()
        picture = Image.fromarray(one[0] if image.mode == "L" else one.transpose(1, 2, 0), image.mode)
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
        files.append(file.getvalue())
    read = np.stack([from_image(file, spec) for file in files])
    return LabelledInputs(read, inputs.labels), files


def golden_inputs(bundle: Bundle) -> LabelledInputs:
    """The bundle's golden samples, whose true labels are not known."""
    return LabelledInputs(bundle.golden().tensor, None)
