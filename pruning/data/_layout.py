"""How a folder of pictures is laid out: class folders, or such under train/, val/ and test/. Guessed, checked, said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pruning.data._tree import PassedOver, folders_in, images_beside
from pruning.notices import say
from sensai_serve.errors import DataError

ROLES = {
    "train": "training", "training": "training",
    "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
"""What a folder of that name, in any case, is where all folders beside it have a role too."""


@dataclass(frozen=True)
class Layout:
    """Where the classes of each part lie."""

    labels: tuple[str, ...]
    """Alphabetically."""
    training: tuple[Path, ...]
    """Folders that hold class folders of the training part."""
    test: Path | None
    """The folder that holds those of the test part; None where one must be held out."""


def find_layout(root: Path, passed: PassedOver) -> Layout:
    """The layout of `root`.

    Raises:
        DataError: no class folders, or folders that can be understood in two ways.
    """
    folders = folders_in(root, passed)
    parts = _parts(root, folders)
    if parts is None:
        _check_flat(root, folders)
        return Layout(tuple(folder.name for folder in folders), (root,), None)
    test = parts.get("test") or parts.get("validation")
    joined = parts["validation"] if "test" in parts and "validation" in parts else None
    training = (parts["training"], *([joined] if joined else []))
    _announce(root, parts["training"], test, joined)
    by_part = {
        part: {folder.name for folder in folders_in(part, passed)} for part in (*training, *([test] if test else []))
    }
    labels = by_part[parts["training"]]
    for part, names in by_part.items():
        if more := sorted(names - labels):
            raise DataError(
                f"folder: class {more[0]!r} is in {part.name}/ but not in {parts['training'].name}/ of {root}, "
                "expected every class in the training part"
            )
        if less := sorted(labels - names):
            say(f"folder: {root}: {part.name}/ has no folder of {len(less)} classes, {less[0]!r} among them")
    return Layout(tuple(sorted(labels)), training, test)


def _parts(root: Path, folders: list[Path]) -> dict[str, Path] | None:
    """The folder of each part; None where `folders` are classes."""
    roles = [(ROLES.get(folder.name.lower()), folder) for folder in folders]
    if not any(role == "training" for role, _ in roles):
        if folders and all(role for role, _ in roles) and all(_has_classes(folder) for _, folder in roles):
            raise DataError(f"folder: {root} has {folders[0].name}/ and no train/, expected train/ beside it")
        return None
    parts: dict[str, Path] = {}
    for role, folder in roles:
        if role is None:
            training = next(f for r, f in roles if r == "training")
            if _has_classes(training) and not images_beside(training):
                raise DataError(
                    f"folder: {root} has {folder.name}/ beside {training.name}/, whose folders look like classes; "
                    "expected class folders only, or train/, val/ and test/ only"
                )
            return None  # a class that is called train
        if role in parts:
            raise DataError(f"folder: {root} has {parts[role].name}/ and {folder.name}/, expected one {role} part")
        parts[role] = folder
    if not any(_has_classes(folder) for folder in parts.values()):
        if len(parts) > 1:
            raise DataError(
                f"folder: {', '.join(f'{folder.name}/' for folder in parts.values())} of {root} hold no folders, "
                "expected one for each class in each of them"
            )
        return None
    return parts


def _check_flat(root: Path, folders: list[Path]) -> None:
    if not folders:
        raise DataError(f"folder: {root} has no folders, expected one for each class")
    if len(folders) == 1 and _has_classes(folders[0]) and not images_beside(folders[0]):
        raise DataError(
            f"folder: {root} has the one folder {folders[0].name}/, whose folders look like classes; "
            f"expected folder:{folders[0]}"
        )
    inside = [{folder.name for folder in folders_in(place, PassedOver())} for place in folders]
    if len(folders) > 1 and len(set.intersection(*inside)) > 1 and not any(map(images_beside, folders)):
        raise DataError(
            f"folder: {', '.join(f'{folder.name}/' for folder in folders[:4])} of {root} all hold the folders "
            f"{', '.join(sorted(set.intersection(*inside))[:3])}: expected the names train and test (and val), or "
            "images in them if they are classes"
        )


def _has_classes(folder: Path) -> bool:
    return bool(folders_in(folder, PassedOver()))


def _announce(root: Path, training: Path, test: Path | None, joined: Path | None) -> None:
    parts = [f"{training.name}/ is the training part"]
    parts += [f"{joined.name}/ joins it"] if joined else []
    parts += [f"{test.name}/ is the test part" if test else "a fifth of it is held out as the test part"]
    say(f"folder: {root}: {', '.join(parts)}")
