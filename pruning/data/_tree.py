"""What lies in a folder of pictures: its visible folders, its image files at any depth, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sensai_serve.errors import DataError
from sensai_serve.images.formats import FORMATS, suffixes

FOREIGN = frozenset({
    "__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin",
    "system volume information", "lost+found",
})  # fmt: skip
"""Names, lower case, that operating systems and tools leave behind; names that begin with a dot are passed over too."""
_KNOWN = frozenset(suffix for format_ in FORMATS.values() for suffix in format_.suffixes)


@dataclass
class PassedOver:
    """Counts of what was not read, and an example of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, path: Path) -> None:
        """One more of a kind."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, path.name)

    def __str__(self) -> str:
        return "; ".join(f"{count} {kind}, say {self.examples[kind]}" for kind, count in self.counts.items())


def is_foreign(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or left behind by an operating system or a tool."""
    return name.startswith(".") or name.lower() in FOREIGN


def folders_in(root: Path, passed: PassedOver) -> list[Path]:
    """The visible folders right in `root`, by name.

    Raises:
        DataError: a name that is no Unicode text, or `root` cannot be read.
    """
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise DataError(f"folder: {root} cannot be read ({error.strerror}), expected a folder of folders") from None
    visible = []
    for entry in entries:
        if not entry.is_dir():
            continue
        if is_foreign(entry.name):
            passed.add("hidden or foreign folders", entry)
            continue
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise DataError(f"folder: {entry.name!r} in {root!s} is no Unicode text, expected another name") from None
        visible.append(entry)
    return visible


def images_under(root: Path, passed: PassedOver) -> list[Path]:
    """The image files in `root` at any depth, by path; others are counted in `passed`."""
    readable = suffixes()
    return sorted(file for file in _visible_files(root, passed) if _is_image(file, readable, passed))


def files_under(root: Path, suffixes: frozenset[str], passed: PassedOver) -> list[Path]:
    """The files in `root` at any depth whose suffix, in any case, is one of `suffixes`, by path; others are counted."""
    found = []
    for file in _visible_files(root, passed):
        if file.suffix.lower() in suffixes and file.is_file():
            found.append(file)
        else:
            passed.add(f"{file.suffix.lower()} files" if file.suffix else "files without a suffix", file)
    return sorted(found)


def images_beside(root: Path) -> list[Path]:
    """The image files right in `root`."""
    readable = suffixes()
    return [file for file in root.iterdir() if not is_foreign(file.name) and file.suffix.lower() in readable]


def _visible_files(root: Path, passed: PassedOver) -> Iterator[Path]:
    seen = {root.resolve()}
    for folder, inside, files in os.walk(root, followlinks=True):
        here = Path(folder)
        keep = []
        for name in inside:
            place = (here / name).resolve()
            if is_foreign(name):
                passed.add("hidden or foreign folders", here / name)
            elif place not in seen:  # a link may lead back
                seen.add(place)
                keep.append(name)
        inside[:] = keep
        for name in files:
            if is_foreign(name):
                passed.add("hidden or foreign files", here / name)
            else:
                yield here / name


def _is_image(file: Path, readable: frozenset[str], passed: PassedOver) -> bool:
    suffix = file.suffix.lower()
    if suffix in readable and file.is_file():
        return True
    if suffix in _KNOWN and suffix not in readable:
        passed.add(f"{suffix} files, which the installed Pillow cannot read", file)
    else:
        passed.add(f"{suffix} files" if suffix and file.is_file() else "files without a suffix", file)
    return False
