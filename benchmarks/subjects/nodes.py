"""Processes of ``sensai node``: hosts of some of a bundle's workers, on loopback."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness.servers import HOST
from sensai_serve.errors import ServingError


class NodeProcess:
    """One node, which can be killed and started again on the same port."""

    def __init__(
        self,
        bundle: Path,
        workers: Sequence[int],
        port: int = 0,
        *,
        host: str = HOST,
        options: Sequence[str] = (),
        within: Sequence[str] = (),
    ) -> None:
        """Start nothing yet.

        Args:
            bundle: directory of the bundle.
            workers: ids of the workers that the node runs.
            port: where it listens for gRPC; the system chooses one where 0.
            host: the address that it listens on.
            options: more options of ``sensai node``.
            within: a command that runs it, such as one that enters a namespace.
        """
        ids = ",".join(map(str, workers))
        self._command = [*within, sys.executable, "-m", "sensai_serve", "node", str(bundle), "--workers", ids,
                         "--grpc", f"{host}:{port}", *options]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        """``grpc://HOST:PORT`` once the node is ready."""

    def begin(self) -> None:
        """Start the node; `start` waits until it is ready."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)

    def start(self) -> None:
        """Start the node, if `begin` has not, and wait until it is ready.

        Raises:
            ServingError: it ended instead.
        """
        if self._process is None or self._process.poll() is not None:
            self.begin()
        assert self._process is not None
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split()
        if said[:1] != ["ready:"]:
            raise ServingError(f"a node ended with exit code {self._process.wait()}, expected it to become ready")
        self.url = said[1]

    def kill(self) -> None:
        """End the node at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()

    @contextlib.contextmanager
    def running(self) -> Iterator[NodeProcess]:
        """Run the node until the block ends.

        Raises:
            ServingError: it does not start.
        """
        try:
            self.start()
            yield self
        finally:
            self.kill()
