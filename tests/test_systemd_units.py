"""deploy/systemd: systemd takes the units, they are confined, and our command line takes what they start."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sensai_serve.cli.main import app
from serving.settings import Settings

FOLDER = Path(__file__).parents[1] / "deploy/systemd"
UNITS = sorted(FOLDER.glob("*.service"))
PROGRAM = "/opt/sensai-serve/bin/sensai"
EXPOSURE = 15
"""The most that `systemd-analyze security` may find, in tenths: 0 is nothing, 100 is everything."""
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analysed(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(params=UNITS, ids=lambda path: path.name)
def unit(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def installed(unit: Path, tmp_path: Path) -> Path:
    """The unit, with a program that exists here."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, sys.executable))
    return copy


@analyze
def test_systemd_takes_the_unit(installed: Path) -> None:
    done = analysed("verify", "--man=no", installed)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    installed.write_text(installed.read_text().replace("WatchdogSec", "WatchDogSec"))
    assert "WatchDogSec" in analysed("verify", "--man=no", installed).stderr  # it would find a mistake


@analyze
def test_systemd_takes_the_socket(tmp_path: Path) -> None:
    sock = tmp_path / "sensai-serve.socket"
    service = FOLDER / "sensai-serve.service"
    (tmp_path / service.name).write_text(service.read_text().replace(PROGRAM, sys.executable))
    sock.write_text((FOLDER / sock.name).read_text())
    done = analysed("verify", "--man=no", sock)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    sock.write_text(sock.read_text().replace("ListenStream", "ListenStreem"))
    assert "ListenStreem" in analysed("verify", "--man=no", sock).stderr  # it would find a mistake


def test_the_socket_is_of_the_address_that_the_server_listens_on_by_itself() -> None:
    (address,) = re.findall(r"^ListenStream=(.*)$", (FOLDER / "sensai-serve.socket").read_text(), re.MULTILINE)
    assert Settings().listeners() == (("http", address),)


@analyze
def test_the_unit_is_confined(installed: Path) -> None:
    done = analysed("security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE}", installed)
    assert done.returncode == 0, done.stdout + done.stderr


def test_our_command_line_takes_what_the_unit_starts(unit: Path) -> None:
    (command,) = re.findall(rf"^ExecStart={PROGRAM} (.*)$", unit.read_text(), re.MULTILINE)
    options = "--workers 0,3,7 --grpc 0.0.0.0:8001"
    assert unit.stem != "sensai-node" or f"SENSAI_NODE_OPTIONS={options}" in unit.read_text()
    words = command.replace("$SENSAI_NODE_OPTIONS", options).split()
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, words)
    assert "/srv/sensai/bundle" in f"{done.output}{done.exception}"  # nothing is wrong but that no bundle is there


def test_a_stop_is_waited_for_longer_than_requests_are(unit: Path) -> None:
    (allowed,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit.read_text(), re.MULTILINE)
    assert int(allowed) > 2 * Settings().drain_s
    (allowed,) = re.findall(r"^TimeoutStartSec=(\d+)$", unit.read_text(), re.MULTILINE)
    assert int(allowed) > Settings().limits.load_s
