"""Bundles and pictures that come with the package: ``example:NAME`` names one wherever a path is taken.

``cifar10/`` is a bundle, and ``pictures/`` holds small pictures to classify with it.
"""

from __future__ import annotations

from pathlib import Path

from sensai_serve.errors import BundleError, DataError

PREFIX = "example:"
_DIRECTORY = Path(__file__).parent
_PICTURES = _DIRECTORY / "pictures"


def bundle_path(path: str | Path) -> Path:
    """Resolve `example:NAME` to the directory of the bundle NAME in this package; any other path stays as it is.

    Raises:
        BundleError: no bundle of that name comes with the package.
    """
    if (name := _example(path)) is None:
        return Path(path)
    found = {manifest.parent.name: manifest.parent for manifest in _DIRECTORY.glob("*/manifest.json")}
    if name not in found:
        raise BundleError(f"{path} is no bundle that comes with sensai-serve, expected {_listed(found)}")
    return found[name]


def file_path(path: str | Path) -> Path:
    """Resolve `example:NAME` to the picture NAME in this package; any other path stays as it is.

    Raises:
        DataError: no picture of that name comes with the package.
    """
    if (name := _example(path)) is None:
        return Path(path)
    found = {picture.name: picture for picture in _PICTURES.iterdir() if picture.suffix == ".png"}
    if name not in found:
        raise DataError(f"{path} is no picture that comes with sensai-serve, expected {_listed(found)}")
    return found[name]


def _example(path: str | Path) -> str | None:
    text = str(path)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def _listed(found: dict[str, Path]) -> str:
    return " or ".join(PREFIX + name for name in sorted(found))
