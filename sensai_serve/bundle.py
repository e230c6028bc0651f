"""The bundle: the directory that the offline side writes and the online side serves. Data only, never code.

NAME/manifest.json        what it holds (`sensai_serve.manifest`)
NAME/subnets/00.onnx ...  one network per worker
NAME/reference.onnx       the unpruned network, where it is wanted as a fall-back or a baseline
NAME/golden.npz           inputs [G, ...], scores [G, C], class_id [G]: what the whole must answer
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sensai_serve.assignment import Assignment
from sensai_serve.errors import BundleError, ChecksumError, OutputExistsError
from sensai_serve.examples import bundle_path
from sensai_serve.manifest import Manifest
from sensai_serve.merge import MergePlan
from sensai_serve.onnxfile import OnnxSignature, read_signature
from sensai_serve.temporaries import temporary_beside

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
REFERENCE = "reference.onnx"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MAX_GOLDEN_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Golden:
    """Inputs and the answers that the bundle must give to them with all workers present."""

    inputs: npt.NDArray[np.float32]
    """[G, *input shape], ready for the network."""
    scores: npt.NDArray[np.float32]
    """[G, C], mean over the copies of each class."""
    class_id: npt.NDArray[np.int64]
    """[G], the winning class."""

    SCORE_TOLERANCE = 1e-3
    MARGIN_TOLERANCE = 2e-3

    def check(self, scores: npt.NDArray[np.floating], class_id: npt.NDArray[np.integer]) -> None:
        """Check answers against these.

        Args:
            scores: [G, C] that were computed.
            class_id: [G] that was elected.

        Raises:
            BundleError: a score is off by more than 1e-3, or a class differs where the margin is 2e-3 or more.
        """
        off = np.abs(np.asarray(scores, np.float64) - self.scores)
        if not (off <= self.SCORE_TOLERANCE).all():
            sample, c = divmod(int(np.argmax(np.where(np.isfinite(off), off, np.inf))), off.shape[1])
            raise BundleError(
                f"golden sample {sample}: the score of class {c} is {float(scores[sample, c]):.6f}, "
                f"expected {float(self.scores[sample, c]):.6f} within {self.SCORE_TOLERANCE}"
            )
        top = np.sort(self.scores, axis=1)
        margin = top[:, -1] - (top[:, -2] if top.shape[1] > 1 else 0.0)
        wrong = (np.asarray(class_id) != self.class_id) & (margin >= self.MARGIN_TOLERANCE)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise BundleError(
                f"golden sample {first}: the class is {int(class_id[first])}, expected {int(self.class_id[first])}"
            )


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, with its manifest read."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read the manifest of the bundle at `path`; `verify` looks at the other files.

        Args:
            path: the bundle's directory, or `example:NAME` for one that comes with the package.

        Raises:
            BundleError: there is no bundle, or its manifest cannot be accepted.
        """
        path = bundle_path(path)
        try:
            with (path / MANIFEST).open("rb") as file:
                text = file.read(MAX_MANIFEST_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            hint = "" if path.is_dir() else ": no such directory"
            raise BundleError(f"{path} is not a bundle{hint}, expected a directory with {MANIFEST}") from None
        except OSError as error:
            raise BundleError(f"{path / MANIFEST} cannot be read: {error.strerror}") from None
        if len(text) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path / MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
        try:
            return cls(path, Manifest.from_json(text))
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None

    @property
    def assignment(self) -> Assignment:
        """The assignment matrix of its workers."""
        return self.manifest.assignment

    def subnet(self, worker: int) -> bytes:
        """Read and check the ONNX file of one worker.

        Raises:
            ChecksumError: the file is not the one that was written.
            BundleError: the file is missing or not ONNX, has external data, or its input or output does not fit the
                manifest.
        """
        spec = self.manifest.subnets[worker]
        return self._network(spec.file, spec.sha256, len(spec.classes))

    def reference(self) -> bytes | None:
        """Read and check the ONNX file of the unpruned network; None where there is none. Raises as `subnet`."""
        name = self.manifest.reference
        return (
            None if name is None else self._network(name, self.manifest.checksums.get(name), self.assignment.n_classes)
        )

    @cached_property
    def merge_plan(self) -> MergePlan:
        """The merge of its workers' copies.

        Raises:
            PluginError: the rule that the manifest names is not there, or was not allowed.
        """
        merge = self.manifest.merge
        plan = MergePlan(self.assignment, merge.rule, merge.threshold)
        _ = plan.rule_type
        return plan

    def golden(self) -> Golden:
        """Read the golden samples.

        Raises:
            BundleError: they are missing or damaged, or do not fit the manifest.
        """
        data = self._read(GOLDEN, self.manifest.checksums.get(GOLDEN))
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                inflated = sum(member.file_size for member in archive.infolist())
            if inflated > MAX_GOLDEN_BYTES:
                raise BundleError(f"{self.path / GOLDEN} inflates to {inflated} bytes, expected {MAX_GOLDEN_BYTES}")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                golden = Golden(
                    np.ascontiguousarray(arrays["inputs"], np.float32),
                    np.asarray(arrays["scores"], np.float32),
                    np.asarray(arrays["class_id"], np.int64),
                )
        except KeyError as error:
            raise BundleError(f"{self.path / GOLDEN}: {error.args[0]}") from None
        except BundleError:
            raise
        except Exception as error:  # zip files, compression and array headers raise whatever they like over damage
            raise BundleError(f"{self.path / GOLDEN} is damaged ({error}), expected an .npz file of arrays") from None
        count = len(golden.inputs)
        expected = {
            "inputs": (count, *self.manifest.input.shape),
            "scores": (count, self.assignment.n_classes),
            "class_id": (count,),
        }
        for name, shape in expected.items():
            got = getattr(golden, name).shape
            if got != shape or count < 1:
                raise BundleError(f"{self.path / GOLDEN}: {name} has shape {list(got)}, expected {list(shape)}")
        return golden

    def verify(self) -> None:
        """Check every file: checksums, no external data, inputs and outputs that fit the manifest.

        Raises:
            BundleError: the first thing that is wrong.
        """
        for worker in range(self.assignment.n_workers):
            self.subnet(worker)
        self.reference()
        self.golden()

    def _read(self, name: str, sha256: str | None) -> bytes:
        file = self.path / name
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{self.path}: {name} leads out of the bundle")
        try:
            data = file.read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error.strerror}") from None
        if sha256 is not None and (got := hashlib.sha256(data).hexdigest()) != sha256:
            raise ChecksumError(f"{self.path}: {name} has SHA-256 {got[:12]}..., expected {sha256[:12]}...")
        return data

    def _network(self, name: str, sha256: str | None, n_outputs: int) -> bytes:
        data = self._read(name, sha256)
        try:
            self._fits(read_signature(data), n_outputs)
        except BundleError as error:
            raise BundleError(f"{self.path}: {name}: {error}") from None
        return data

    def _fits(self, signature: OnnxSignature, n_outputs: int) -> None:
        if signature.external_data:
            raise BundleError("keeps weights in another file, expected all of them in this one")
        spec = self.manifest.input
        if len(signature.inputs) != 1 or not signature.outputs:
            raise BundleError(f"has {len(signature.inputs)} inputs, expected one, and at least one output")
        given, out = signature.inputs[0], signature.outputs[0]
        if given.name != spec.name or not given.accepts(spec.shape):
            raise BundleError(f"takes {given}, expected {spec.name} FP32 [N, {', '.join(map(str, spec.shape))}]")
        if out.name != "scores" or not out.accepts((n_outputs,)):
            raise BundleError(f"gives {out}, expected scores FP32 [N, {n_outputs}]")


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A new directory that appears at `path` whole, or not at all.

    Yields a directory beside `path` under a temporary name; when the block ends it is renamed, when it raises it is
    removed. Temporaries that killed processes left beside it are removed too.

    Raises:
        OutputExistsError: `path` holds something already.
    """
    path = Path(path)
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path, directory=True) as temporary:
        yield temporary
        temporary.chmod(0o755)
        refuse_existing(path)
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A file that appears at `path` whole, or not at all; what was there before is replaced in one step.

    Yields a temporary path in the same directory to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path, directory=False) as temporary:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)


def refuse_existing(path: Path) -> None:
    """Raise OutputExistsError unless `path` is free or an empty directory."""
    if path.is_dir():
        if any(path.iterdir()):
            raise OutputExistsError(f"{path} is not empty, expected a new or empty directory")
    elif path.exists() or path.is_symlink():
        raise OutputExistsError(f"{path} is a file, expected a new or empty directory")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
