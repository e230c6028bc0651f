"""Copies the pages of the documentation site to build/docs, laid out as in the repository, so that links hold in both.

README.md becomes the first page. What pages show or link to, pictures and kept results, is copied with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "build/docs"
FILES = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs/**/*.md",
    "docs/**/*.svg",
    "docs/*.gif",
    "docs/site/*.css",
    "docs/site/*.js",
    "*/README.md",
    "benchmarks/results/**/*.json",
    "benchmarks/results/**/*.png",
    "benchmarks/results/**/*.html",
    "deploy/compose/*",
    "deploy/kserve/*",
    "deploy/kubernetes/*",
    "deploy/systemd/*",
)
"""What is copied, as patterns from the root of the repository."""


def files() -> Iterator[tuple[Path, Path]]:
    """Each file to copy, and where it goes, from the root of the site."""
    yield ROOT / "README.md", Path("index.md")
    for pattern in FILES:
        for found in sorted(ROOT.glob(pattern)):
            if found.is_file():
                yield found, found.relative_to(ROOT)


def main() -> None:
    """Make the folder anew."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for source, place in files():
        target = TARGET / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


if __name__ == "__main__":
    main()
