"""Every page: links lead somewhere, Python and TOML can be read, commands and options exist."""

from __future__ import annotations

import functools
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click import ClickException, Context
from code_blocks import ROOT, anchors, blocks, relative_links
from typer.main import get_command

from sensai_serve.cli.main import TRACEBACK, app

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "deploy", "examples")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OTHERS = ("pip", "make", "docker", "kubectl", "curl", "cp", "mkdir", "python", "openssl", "git", "systemctl",
          "apt-get", "deploy/image.sh")  # fmt: skip
"""Programs of others that pages run."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(params=PAGES, ids=name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in relative_links(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(found), target


def test_files_that_are_named_exist(page: Path) -> None:
    """Code spans that begin with a folder of the repository."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    folders = "sensai_serve|pruning|export|serving|benchmarks|tests|docs|deploy|examples"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        if page.name != "CHANGELOG.md" and not path.rpartition("/")[2].isupper():  # old names, and placeholders
            assert (ROOT / path).exists(), path


def test_python_and_toml_can_be_read(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block.code, page.name, "exec")
    for block in blocks(page, "toml"):
        tomllib.loads(block.code)


def test_every_command_and_option_exists(page: Path) -> None:
    for block in blocks(page, "sh"):
        for line in block.lines():
            for part in re.split(r"\s(?:&&|\|)\s", line):
                words = shlex.split(part.partition(" > ")[0], comments=True)
                assert words[0] in ("sensai", *OTHERS), line
                if words[0] == "sensai":
                    check(words[1:], line)


def test_commands_in_running_text_exist(page: Path) -> None:
    """Code spans that begin with `sensai ` name a command, and options that it has."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(sensai [a-z][^`]*)`", text):
        if "_" not in span.split()[1]:
            check(shlex.split(" ".join(span.split()))[1:], span)


def check(words: list[str], line: str) -> None:
    """That these words name a command and options that it has."""
    command = commands()
    while hasattr(command, "resolve_command") and words and not words[0].startswith(("-", ".")):
        if ":" in words[0]:
            return  # a plugin of the reader's own
        try:
            _, command, words = command.resolve_command(Context(command), words)
        except ClickException as error:
            pytest.fail(f"{error.message} {line}")
    options = {*options_of(command), "--help", TRACEBACK}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{word}: {line}"


@functools.cache
def commands() -> Any:
    """The command `sensai` with all that it has."""
    return get_command(app)


@functools.cache
def options_of(command: Any) -> set[str]:
    """The flags of a command."""
    command = command.make_context(command.name, [], resilient_parsing=True).command  # a benchmark's own, imported now
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
