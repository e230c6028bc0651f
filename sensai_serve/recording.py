"""Recorded requests: inputs that a server was not sure about, one file each, for `sensai replay` and for retraining."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import DataError, InputError
from sensai_serve.input_spec import FLOATS, InputSpec
from sensai_serve.tensors import Array, Inputs, NamedInputs

MOST_BYTES = 1 << 31
"""Bytes of a file that is read."""
SUFFIX = ".npz"
_INPUT = "input"


@dataclass(frozen=True)
class Recorded:
    """One input, and what was answered."""

    inputs: Inputs
    """N = 1, as the workers got it."""
    answer: dict[str, Any]
    """What was answered, as JSON has it: ``model``, ``version``, ``time`` (UTC, ISO 8601), ``id``, ``why``,
    ``class_id``, ``label``, ``margin``, ``elected``, ``complete``, ``degraded``, ``decided_early``, ``scores``,
    ``votes``, ``copies``, ``arrived`` and ``missing``, the cause by worker. Of several labels at once ``labels`` in
    place of ``class_id``; ``label`` then names all of them."""

    def to_bytes(self) -> bytes:
        """The file's content: an npz with the arrays ``input`` and ``answer``, the latter JSON text.

        ``input`` is [*shape]; where the model takes several tensors, each is an array ``input.NAME``.
        """
        file = io.BytesIO()
        named = self.inputs.arrays if isinstance(self.inputs, NamedInputs) else {"": self.inputs}
        arrays: dict[str, Any] = {f"{_INPUT}.{name}" if name else _INPUT: array[0] for name, array in named.items()}
        np.savez_compressed(file, answer=np.array(json.dumps(self.answer)), **arrays)
        return file.getvalue()

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """Read a file.

        Raises:
            DataError: it cannot be read, or is no recorded request.
        """
        try:
            if path.stat().st_size > MOST_BYTES:
                raise DataError(f"{path} is larger than a recorded request can be")
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                answer = json.loads(str(arrays["answer"]))
                prefix = f"{_INPUT}."
                named = {name.removeprefix(prefix): arrays[name][None] for name in arrays if name.startswith(prefix)}
                given: Inputs = NamedInputs(named) if named else arrays[_INPUT][None]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, MemoryError):
            raise DataError(
                f"{path} is no recorded request, expected a file that sensai serve --record wrote"
            ) from None
        if not isinstance(answer, dict) or not isinstance(answer.get("label"), str | None):
            raise DataError(f"{path} is no recorded request: its answer is damaged")
        return cls(given, answer)


def recordings(folder: Path) -> list[Path]:
    """The files of recorded requests below a folder, the oldest first: their names begin with their time.

    Raises:
        InputError: the folder is missing, or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no directory, expected one that sensai serve --record wrote to")
    found = sorted(folder.rglob(f"[0-9]*{SUFFIX}"), key=lambda path: path.name)
    if not found:
        raise InputError(f"{folder} holds no recorded requests")
    return found


def raw_inputs(inputs: Sequence[Array], spec: InputSpec) -> npt.NDArray[Any]:
    """Recorded inputs as they were before normalisation: training data without its labels.

    Args:
        inputs: [*shape] each, all of one shape.
        spec: the model's input.

    Returns:
        uint8 [N, *shape] where the model takes pictures, else the input's datatype [N, *shape].

    Raises:
        DataError: an axis of the model is dynamic, and the inputs differ in it.
    """
    if len({one.shape for one in inputs}) > 1:
        raise DataError("recorded inputs are of different lengths, expected one length to write them as one array")
    if spec.dtype not in FLOATS:
        return np.stack(inputs)
    values, way = np.stack(inputs).astype(np.float64), spec.normalisation
    across = (-1, *([1] * (len(spec.shape) - 1)))
    raw = (values * np.array(way.std).reshape(across) + np.array(way.mean).reshape(across)) / way.scale
    if spec.image is None:
        return np.asarray(raw, spec.numpy)
    return np.asarray(np.clip(np.rint(raw), 0, 255), np.uint8)
