"""The pages on the server say what is there: every setting, every metric, every route, and examples that run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sensai_serve.cli.main import main
from serving.settings import describe_settings

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "\n\n".join((DOCS / name).read_text() for name in ("serving.md", "operating.md"))
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
GIVEN = {"http": "127.0.0.1:1", "admin": "127.0.0.1:3", "grpc": "127.0.0.1:1",
         "listen": "http=127.0.0.1:2", "inference.wait": "all",
         "inference.on_missing": "degrade", "allowed_origins": "https://app.example",
         "inference.processes": "device", "inference.abstain_unelected": None, "log_format": "json",
         "access_log": None, "inference.devices": "cpu:0", "inference.faults": "0:drop", "inference.spinning": None,
         "inference.allow_faults": None, "console": None,
         "otlp.endpoint": "http://127.0.0.1:4",
         "shared_memory": None, "limits.header_bytes": "2000", "limits.image_formats": "PNG",
         "root_path": "/x", "strict_readiness": None, "cold": "refuse", "memory": "200MiB"}  # fmt: skip
"""What a flag is tried with; None where it takes no value."""


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose first heading that is."""
    table = PAGE[PAGE.index(f"| {first} |") :].partition("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:] if line[:3] == "| `"
    ]


@pytest.fixture(scope="module")
def served(run_server, make_bundle, tmp_path_factory):
    settings = {"repository": tmp_path_factory.mktemp("models"), "memory": "1GB"}  # which has metrics of its own
    with run_server(make_bundle(name="digits", shape=(1, 8, 8)), grpc="127.0.0.1:0", **settings) as server:
        yield server


def test_every_flag_in_the_table_sets_its_setting_and_none_is_left_out(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    flags = {name.strip("`"): flag.strip("`") for name, flag, *_ in rows("setting") if flag}
    arguments = [part for name, flag in flags.items() for part in (flag, GIVEN.get(name, "1")) if part is not None]
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--show-settings", *arguments])
    shown = capsys.readouterr().out
    assert ended.value.code == 0, shown
    given = {words[0] for line in shown.splitlines() if "flag" in (words := line.replace("│", " ").split())[2:3]}
    assert given == set(flags)
    assert set(flags) == {setting.name for setting in describe_settings()}


def test_every_metric_stands_in_the_table_as_it_is(served) -> None:
    text = httpx.get(f"{served.url}/metrics").text
    told = [(n, h) for n, h in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE) if not n.endswith("_created")]
    assert [(name.strip("`"), text) for name, _, text in rows("metric")] == told
    labels = {name.strip("`"): set(filter(None, cell.split(", "))) for name, cell, _ in rows("metric")}
    for sample, found in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        name = re.sub(r"_(bucket|count|sum)$", "", sample)
        if not sample.endswith("_created"):
            assert set(re.findall(r'(\w+)="', found)) - {"le"} == labels[name], sample


def test_every_route_stands_on_the_page(served) -> None:
    for path in httpx.get(f"{served.url}/openapi.json").json()["paths"]:
        known = path.replace("{name}", "M").replace("{version}", "V")
        groups = ("/v2/health/", "/v2/models/M", "/v2/repository/", "/v2/models/stats", "/v2/systemsharedmemory/")
        assert f"`{known}" in PAGE or f" {known}`" in PAGE or known.startswith(groups), path


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(served, number: int) -> None:
    code = EXAMPLES[number].replace("127.0.0.1:8000", served.address).replace("127.0.0.1:8001", served.grpc)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
