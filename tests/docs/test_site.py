"""The documentation site: builds without a warning, has every page and the API, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from code_blocks import ROOT

pytest.importorskip("zensical")
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, made from a copy of what it is made of."""
    copy = tmp_path_factory.mktemp("repository")
    for folder in ("benchmarks", "deploy", "docs", "examples", "export", "pruning", "sensai_serve", "serving"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.onnx", "*.npz", "__pycache__"))
    for file in (*ROOT.glob("*.md"), ROOT / "zensical.toml"):
        shutil.copyfile(file, copy / file.name)
    for command in ([sys.executable, "docs/site/stage.py"], [sys.executable, "-m", "zensical", "build", "--strict"]):
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return copy / "site"


def pages(nav: list[dict]) -> list[str]:
    """The files that a navigation names."""
    targets = [target for entry in nav for target in entry.values()]
    return [page for target in targets for page in (pages(target) if isinstance(target, list) else [target])]


def test_every_page_can_be_found() -> None:
    listed = pages(CONFIG["nav"])
    assert set(map(str, (page.relative_to(ROOT) for page in (ROOT / "docs").rglob("*.md")))) <= set(listed)
    assert {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= set(listed)
    assert len(listed) == len(set(listed))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    own = [page for page in site.rglob("*.html") if "results" not in page.parts]
    assert len(own) >= len(pages(CONFIG["nav"]))
    for page in own:
        text = page.read_text()
        for tag in re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*>", text):
            for url in re.findall(r"""(?:src|href)=["']?([^"' >]+)""", tag):
                assert "rel=canonical" in tag or not urlsplit(url).netloc, f"{page}: {tag}"
        assert "fonts.g" not in text


def test_pictures_and_kept_results_are_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        if "results" in page.parts or page.name == "404.html":
            continue
        for url in re.findall(r"""<(?:img|a)\b[^>]*(?:src|href)=["']?([^"' >#]+)""", page.read_text()):
            parts = urlsplit(url)
            if not parts.scheme and not parts.netloc and parts.path:
                assert (page.parent / parts.path).exists(), f"{page}: {url}"


def test_the_api_says_shapes_units_and_errors(site: Path) -> None:
    text = (site / "docs/api/python.html").read_text()
    for expected in ('id="sensai_serve.local.Classifier.predict"', "Raises", "RequestError", "FP32 [N, *shape]"):
        assert expected in text
    assert 'id="sensai_serve.errors.BundleError"' in (site / "docs/api/errors.html").read_text()
    assert 'id="serving.backends.Backend"' in (site / "docs/api/plugins.html").read_text()
