"""Temporaries of killed processes are swept by whoever writes there next; those of living ones stay."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sensai_serve.bundles import atomic_directory, atomic_file
from sensai_serve.temporaries import sweep

WRITER = """
import sys
from sensai_serve.bundles import atomic_directory, atomic_file
with {kind}(sys.argv[1]) as temporary:
    print(temporary, flush=True)
    sys.stdin.read()
"""


def writer(kind: str, path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of writing, and its temporary."""
    process = subprocess.Popen([sys.executable, "-c", WRITER.format(kind=kind), path], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_directory"])
def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(tmp_path: Path, kind: str) -> None:
    killed, left = writer(kind, tmp_path / "a")
    alive, kept = writer(kind, tmp_path / "b")
    try:
        if kind == "atomic_directory":
            (left / "part").write_text("half")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists()
        with atomic_file(tmp_path / "c") as temporary:
            temporary.write_text("whole")
        assert not left.exists()
        assert kept.exists()
    finally:
        alive.communicate("")
        killed.communicate()
    assert alive.returncode == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["b", "c"]


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    others = [".a.abcdefgh", ".a.partial", "a.abcdefgh.partial", ".bashrc", ".a.ABCDEFGH.partial"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".a.abcdefgh.partial").symlink_to(tmp_path / ".bashrc")
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    sweep(tmp_path / "nowhere")


def test_writers_that_sweep_at_the_same_time_do_not_sweep_each_other(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for i in range(30):
            with atomic_file(tmp_path / f"{number}-{i}") as temporary:
                temporary.write_text("whole")
            with atomic_directory(tmp_path / f"{number}-{i}.d") as folder:
                (folder / "f").write_text("whole")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 240


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    for make in (atomic_file, atomic_directory):
        with pytest.raises(KeyError), make(tmp_path / "a"):
            raise KeyError
    assert not list(tmp_path.iterdir())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(20):
        with atomic_file(tmp_path / f"{i}") as temporary:
            temporary.write_text("")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
