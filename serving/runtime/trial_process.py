"""The processes in which bundles are tried out; while many are loaded one process takes one bundle after another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor

PASSED = b"passed\n"
"""What a process writes when a bundle has passed and it can take another."""
PASSED_LAST = b"passed, the last\n"
"""What a process writes when a bundle has passed and it takes no other."""
UNUSED_S = 10.0
"""Seconds that a process is kept without a bundle: it takes the memory of a Python with ONNX Runtime."""
_CHILD = (
    "import gc; gc.disable(); import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from serving.runtime.trial import main; main()"
)  # collections while modules are imported find nothing and take a fifth of the time

Ended = tuple[int, bytes, bytes]
"""Exit code of a process, and what it wrote to standard output and standard error."""


class TrialProcess:
    """One process. A thread of its own starts it and gives it bundles; any other may kill it.

    The thread lives as long as the process: the kernel ends a process whose parent has ended, and the parent is the
    thread that started it.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "trial")
        self._lock = threading.Lock()
        self._killed = False
        self._popen: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended
        self.takes_more = True
        """Whether it can be given another bundle."""

    def begin(self) -> None:
        """Start it, to be given its first bundle later: it imports what it needs meanwhile."""
        self._executor.submit(self._start)

    def submit(self, given: bytes) -> Future[Ended | None]:
        """Have it try a bundle out.

        Args:
            given: what to try out, as JSON on one line without its end.

        Returns:
            The future of None if the bundle passes, and of how the process ended if it does not.
        """
        return self._executor.submit(self._run, given)

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._killed:
                return None
            if self._popen is None:
                pipe = subprocess.PIPE
                self._popen = subprocess.Popen(
                    [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
                    stdin=pipe, stdout=pipe, stderr=self._errors, start_new_session=True,
                )  # fmt: skip
            return self._popen

    def _run(self, given: bytes) -> Ended | None:
        popen = self._start()
        if popen is None:
            return 1, b"", b""
        assert popen.stdin is not None
        assert popen.stdout is not None
        try:
            popen.stdin.write(given + b"\n")
            popen.stdin.flush()
        except OSError:  # it has ended; its exit code says more
            self.takes_more = False
        said = popen.stdout.readline()
        self.takes_more = said == PASSED
        if said in (PASSED, PASSED_LAST):
            return None
        code = popen.wait()
        self._errors.seek(0)
        return code, said, self._errors.read()

    def kill(self) -> None:
        """End it, at whatever it is, and do not wait for it. Once it was killed, nothing happens."""
        with self._lock:
            if self._killed:
                return
            self._killed = True
            if self._popen is not None:
                self._popen.kill()
        self._executor.submit(self._clean_up)
        self._executor.shutdown(wait=False)

    def _clean_up(self) -> None:
        if self._popen is not None:
            with contextlib.suppress(OSError), self._popen:  # waits, and closes the pipes
                pass
        self._errors.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._popen is not None and self._popen.poll() is None


class TrialProcesses:
    """Lends processes for trials, and keeps one for the next bundle for `UNUSED_S`. On one event loop."""

    def __init__(self, *, keep: bool = True, first: TrialProcess | None = None) -> None:
        """Start nothing yet.

        Args:
            keep: whether a process is kept for the next bundle at all.
            first: a process that has begun, for the first bundle.
        """
        self._keep = keep
        self._kept = first
        self._timer: asyncio.TimerHandle | None = None

    def take(self) -> TrialProcess:
        """A process that has no bundle now. The caller gives it back, or kills it."""
        kept = self._take_kept()
        if kept is None:
            return TrialProcess()
        if kept.alive:
            return kept
        kept.kill()
        return TrialProcess()

    def give_back(self, process: TrialProcess) -> None:
        """Keep a process whose bundle has passed, or end it."""
        if self._keep and process.takes_more and self._kept is None:
            self._kept = process
            self._timer = asyncio.get_running_loop().call_later(UNUSED_S, self._end_kept)
        else:
            process.kill()

    def close(self) -> None:
        """End the process that is kept, and keep none from now on; `take` still gives new ones."""
        self._keep = False
        self._end_kept()

    def _end_kept(self) -> None:
        if (kept := self._take_kept()) is not None:
            kept.kill()

    def _take_kept(self) -> TrialProcess | None:
        if self._timer is not None:
            self._timer.cancel()
        kept, self._kept, self._timer = self._kept, None, None
        return kept
