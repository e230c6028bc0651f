"""The bundle: the directory that the offline side writes and the online side serves. Data only, never code.

NAME/manifest.json        what it holds (`sensai_serve.manifest`)
NAME/subnets/00.onnx ...  one network per worker
NAME/reference.onnx       the unpruned network, where it is wanted as a fall-back or a baseline
NAME/golden.npz           inputs [G, ...], scores [G, C], class_id [G] (labels [G, C] of several labels at once): what
                          the whole must answer
NAME/tokenizer.json       the tokenizer of the library `tokenizers` that makes inputs of texts, where there is one
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sensai_serve.assignment import Assignment
from sensai_serve.errors import BundleError, ChecksumError, InputError, OutputExistsError, PluginError, UnsupportedError
from sensai_serve.examples import bundle_path
from sensai_serve.golden import MAX_GOLDEN_BYTES, Golden, read_golden
from sensai_serve.manifest import Manifest
from sensai_serve.merge import MergePlan
from sensai_serve.merge.rules import check_heads
from sensai_serve.onnx_signature import OnnxSignature, read_signature
from sensai_serve.temporaries import exchange, temporary_beside
from sensai_serve.tokenizer import MAX_TOKENIZER_BYTES, TextTokenizer, check_vocabulary

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
REFERENCE = "reference.onnx"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MAX_NETWORK_BYTES = 2**31 - 1
"""The most that a Protocol Buffers message, and so an ONNX file, can have."""


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
            text = _read_regular(path / MANIFEST, MAX_MANIFEST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{path} is not a bundle{_why_not(path)}, expected a directory with {MANIFEST}") from None
        except OSError as error:
            raise BundleError(f"{path / MANIFEST} cannot be read: {error.strerror}") from None
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
            BundleError: the rule does not fit the subnets' heads.
            PluginError: the rule that the manifest names is not there, or was not allowed.
        """
        merge = self.manifest.merge
        try:
            check_heads(merge.rule, [subnet.head for subnet in self.manifest.subnets])
        except PluginError:
            raise
        except InputError as error:
            raise BundleError(f"{self.path}: {error}") from None
        return MergePlan(
            self.assignment, merge.rule, merge.threshold, merge.confident, self.manifest.task, merge.thresholds
        )

    def golden(self) -> Golden:
        """Read the golden samples.

        Raises:
            BundleError: they are missing or damaged, or do not fit the manifest.
        """
        data = self._read(GOLDEN, self.manifest.checksums.get(GOLDEN), MAX_GOLDEN_BYTES)
        try:
            return read_golden(data, self.manifest.inputs, self.assignment.n_classes, self.manifest.task)
        except BundleError as error:
            raise BundleError(f"{self.path / GOLDEN}: {error}") from None

    def tokenizer(self) -> bytes | None:
        """Read and check the tokenizer, without its library; None where there is none.

        Raises:
            ChecksumError: the file is not the one that was written.
            BundleError: the file is missing, no tokenizer, or makes tokens that the network does not know.
        """
        if (spec := self.manifest.tokenizer) is None:
            return None
        data = self._read(spec.file, self.manifest.checksums[spec.file], MAX_TOKENIZER_BYTES)
        try:
            check_vocabulary(data, spec, self.manifest.inputs)
        except InputError as error:
            raise BundleError(f"{self.path}: {spec.file}: {error}") from None
        return data

    def text_tokenizer(self) -> TextTokenizer | None:
        """What makes inputs of texts; None where the bundle has no tokenizer.

        Raises:
            UnsupportedError: the library `tokenizers` is not installed.
            BundleError: as `tokenizer`, or the library does not take it.
        """
        data, spec = self.tokenizer(), self.manifest.tokenizer
        if data is None or spec is None:
            return None
        try:
            return TextTokenizer(data, spec, self.manifest.inputs)
        except UnsupportedError:
            raise
        except InputError as error:
            raise BundleError(f"{self.path}: {spec.file}: {error}") from None

    def verify(self) -> None:
        """Check every file: checksums, no external data, inputs and outputs that fit the manifest.

        Raises:
            BundleError: the first thing that is wrong.
        """
        for worker in range(self.assignment.n_workers):
            self.subnet(worker)
        self.reference()
        self.golden()
        self.tokenizer()

    def _read(self, name: str, sha256: str | None, most: int) -> bytes:
        file = self.path / name
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{self.path}: {name} leads out of the bundle")
        try:
            data = _read_regular(file, most)
        except OSError as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error.strerror}") from None
        if sha256 is not None and (got := hashlib.sha256(data).hexdigest()) != sha256:
            raise ChecksumError(f"{self.path}: {name} has SHA-256 {got[:12]}..., expected {sha256[:12]}...")
        return data

    def _network(self, name: str, sha256: str | None, n_outputs: int) -> bytes:
        data = self._read(name, sha256, MAX_NETWORK_BYTES)
        try:
            self._fits(read_signature(data), n_outputs)
        except BundleError as error:
            raise BundleError(f"{self.path}: {name}: {error}") from None
        return data

    def _fits(self, signature: OnnxSignature, n_outputs: int) -> None:
        if signature.external_data:
            raise BundleError("keeps weights in another file, expected all of them in this one")
        specs = self.manifest.inputs
        if len(signature.inputs) != len(specs) or not signature.outputs:
            raise BundleError(
                f"has {len(signature.inputs)} inputs, expected {'one' if len(specs) == 1 else len(specs)}, and at "
                "least one output"
            )
        given = {value.name: value for value in signature.inputs}
        for spec in specs:
            found = given.get(spec.name)
            if found is None or not found.accepts(spec.shape, spec.dtype):
                taken = ", ".join(map(str, signature.inputs)) if found is None else found
                raise BundleError(f"takes {taken}, expected {spec.name} {spec.dtype} {spec.batch_described}")
        out = signature.outputs[0]
        if out.name != "scores" or not out.accepts((n_outputs,)):
            raise BundleError(f"gives {out}, expected scores FP32 [N, {n_outputs}]")


def _why_not(path: Path) -> str:
    """What a path without a manifest is instead, as part of a message; empty where that is not known."""
    if path.is_file():
        return ": a file, which `sensai bundle` makes one of" if path.suffix == ".onnx" else ": a file"
    if not path.is_dir():
        return ": no such directory"
    if (path / "recipe.json").is_file():
        return f": a run, which `sensai export {path} --out BUNDLE` makes one of"
    if any(path.glob(f"*/{MANIFEST}")):
        return ": a directory of bundles, which `sensai serve --repository` serves"
    return ""


def _read_regular(path: Path, most: int) -> bytes:
    """Read a file. What is not a regular file, such as a FIFO, is refused unread: it might never end.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `most` bytes.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes")
        return file.read(status.st_size)


@contextmanager
def atomic_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A new directory that appears at `path` whole, or not at all.

    Yields a directory beside `path` under a temporary name; when the block ends it is renamed, when it raises it is
    removed. Temporaries that killed processes left beside it are removed too.

    Args:
        path: a new or empty directory.
        replace: a bundle that is there is replaced in one step when the block ends, and is left alone when it raises.

    Raises:
        OutputExistsError: `path` holds something already; with `replace`, something that is no bundle.
    """
    path = Path(path).resolve() if replace else Path(path)
    refuse_existing(path, but_bundles=replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path, directory=True) as temporary:
        yield temporary
        temporary.chmod(0o755)
        refuse_existing(path, but_bundles=replace)
        if replace and path.is_dir():
            exchange(temporary, path)  # what was there is removed as the temporary
            return
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


def refuse_existing(path: Path, *, but_bundles: bool = False) -> None:
    """Raise OutputExistsError unless `path` is free or an empty directory, or, with `but_bundles`, a bundle."""
    if path.is_dir():
        if any(path.iterdir()):
            if but_bundles:
                try:
                    Bundle.open(path)
                except BundleError as error:
                    raise OutputExistsError(f"only a bundle is replaced, and {error}") from None
                return
            raise OutputExistsError(f"{path} is not empty, expected a new or empty directory")
    elif path.exists() or path.is_symlink():
        raise OutputExistsError(f"{path} is a file, expected a new or empty directory")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
