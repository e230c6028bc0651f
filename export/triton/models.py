"""What a model of a Triton repository is, and the text format of its ``config.pbtxt``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.triton.options import TritonOptions
from sensai_serve.remote_names import BUNDLE, checksum_key, version_of

_PARAMETER = re.compile(r'key: "([^"]+)" value \{ string_value: ("(?:[^"\\]|\\.)*") \}')


@dataclass(frozen=True)
class TritonModel:
    """One model of a repository, before it is written."""

    name: str
    sha256: str
    """Of everything that makes it answer as it does; the same for the same bundle."""
    write_version: Callable[[Path], None]
    """Fills the folder of a version."""
    config: Callable[[int, Mapping[str, str]], str]
    """``config.pbtxt``, of the newest version and the parameters that say which bundle and versions these are."""
    kept: int
    """Number of versions that are served side by side."""


def copy_code(name: str, folder: Path, options: TritonOptions) -> None:
    """Give a version the code that the Python backend runs.

    Args:
        name: of the file beside this one.
        folder: of the version.
        options: say where that code finds its packages.
    """
    shutil.copyfile(Path(__file__).with_name(name), folder / "model.py")
    if options.site_packages:
        (folder / "site_packages").write_text(f"{options.site_packages}\n")


def bundle_parameters(bundle_name: str, checksums: Mapping[int, str]) -> dict[str, str]:
    """The parameters of a configuration that say which bundle a model is of, and the SHA-256 of each version."""
    return {BUNDLE: bundle_name} | {checksum_key(str(version)): checksums[version] for version in sorted(checksums)}


def parameters_of(config: str) -> dict[str, str]:
    """The parameters in a ``config.pbtxt`` that was written here."""
    return {key: json.loads(value) for key, value in _PARAMETER.findall(config)}


def checksums_of(parameters: Mapping[str, str]) -> dict[int, str]:
    """The SHA-256 of each version, as `bundle_parameters` holds it."""
    versions = {key: version_of(key) for key in parameters}
    return {int(version): parameters[key] for key, version in versions.items() if version is not None}


def quoted(value: str) -> str:
    """A string of Protocol Buffers' text format."""
    return json.dumps(value, ensure_ascii=False)


def entries(parameters: Mapping[str, str]) -> str:
    """The field ``parameters`` of a configuration, which `parameters_of` reads."""
    lines = ",\n".join(
        f"  {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}" for key, value in parameters.items()
    )
    return f"parameters [\n{lines}\n]\n"


def tensor(name: str, datatype: str, shape: tuple[int, ...]) -> str:
    """One entry of ``input`` or ``output``: a tensor [N, ...] of the Open Inference Protocol's datatype."""
    kind = "STRING" if datatype == "BYTES" else datatype
    return f"  {{ name: {quoted(name)} data_type: TYPE_{kind} dims: {list(shape)} }}"
