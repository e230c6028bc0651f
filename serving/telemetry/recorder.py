"""Keeps the inputs of requests that the workers disagree about, in files bounded in bytes, off the event loop."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sensai_serve.bundles import atomic_file
from sensai_serve.errors import InputError
from sensai_serve.merge import Answer
from sensai_serve.merge.rules import LabelVerdict, Verdict
from sensai_serve.recording import SUFFIX, Recorded, recordings
from sensai_serve.tensors import copy_of
from serving.engine.gateway import Gateway
from serving.engine.reply import Reply
from serving.v2 import InferRequest

WAITING_BYTES = 64 * 1024 * 1024
"""Bytes of the inputs that wait to be written; further ones are dropped, and counted in the log."""
SAY_S = 60.0
"""Seconds between two lines of the log about what was dropped."""
_log = logging.getLogger(__name__)


class Recorder:
    """Writes requests that were incomplete, unelected or degraded, or whose margin is below a bound."""

    def __init__(self, folder: Path, most_bytes: int, margin: float) -> None:
        """Make the folder, which only this user may read.

        Args:
            folder: where files are written, in a folder of each model.
            most_bytes: bytes of all files together; the oldest make room.
            margin: answers whose best score leads by less are kept.

        Raises:
            InputError: the folder cannot be made or written to.
        """
        self._folder, self._most, self._margin = folder, most_bytes, margin
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        except OSError as error:
            raise InputError(f"{folder} cannot be written to: {error.strerror}") from None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._waiting = self._dropped = 0
        self._said = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._files: deque[tuple[Path, int]] = deque()
        with contextlib.suppress(InputError):  # none yet
            self._files.extend((path, path.stat().st_size) for path in recordings(folder))
        self._bytes = sum(size for _, size in self._files)

    def consider(self, gateway: Gateway, request: InferRequest, reply: Reply) -> None:
        """Keep those inputs of an answered request that are worth it; what it costs a sure one is a few comparisons."""
        answer = reply.answer
        general = [] if answer.complete else ["incomplete"]
        general += ["degraded"] if answer.degraded else []
        for row, verdict in enumerate(answer.rows):
            sure = verdict.elected or answer.sets_labels  # no label is an answer too
            why = general if sure else [*general, "unelected"]
            if verdict.margin < self._margin:
                why = [*why, "margin"]
            if why:
                self._keep(gateway, request, reply, row, why)

    def _keep(self, gateway: Gateway, request: InferRequest, reply: Reply, row: int, why: list[str]) -> None:
        one = reply.result.inputs[row : row + 1]  # of a text, its tokens
        size = one.nbytes
        with self._lock:
            if self._waiting + size > WAITING_BYTES:
                self._dropped += 1
                return
            self._waiting += size
        given = copy_of(one)  # a client may write to shared memory as soon as it is answered
        said = _said(gateway, request, reply, row, why)
        self._thread.submit(self._write, gateway.name, Recorded(given, said), size)

    def _write(self, model: str, recorded: Recorded, size: int) -> None:
        folder = self._folder / model
        path = folder / f"{time.time_ns():020d}-{next(self._numbers)}{SUFFIX}"
        try:
            content = recorded.to_bytes()
            if len(content) <= self._most:
                folder.mkdir(mode=0o700, exist_ok=True)
                while self._files and self._bytes + len(content) > self._most:
                    oldest, freed = self._files.popleft()
                    oldest.unlink(missing_ok=True)
                    self._bytes -= freed
                with atomic_file(path) as temporary:
                    temporary.write_bytes(content)
                self._files.append((path, len(content)))
                self._bytes += len(content)
        except OSError as error:
            self._say("requests cannot be recorded: %s", error)
        with self._lock:
            self._waiting -= size
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._say("%d inputs were not recorded: they came faster than they could be written", dropped)

    def _say(self, message: str, detail: object) -> None:
        if time.monotonic() - self._said > SAY_S:
            self._said = time.monotonic()
            _log.warning(message, detail)

    def close(self) -> None:
        """Write what waits."""
        self._thread.shutdown()


def _said(gateway: Gateway, request: InferRequest, reply: Reply, row: int, why: list[str]) -> dict[str, object]:
    answer: Answer = reply.answer
    verdict = answer.rows[row]
    return {
        "model": gateway.name,
        "version": gateway.version,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "id": request.id,
        "why": why,
        **_labels(verdict, gateway.manifest.labels),
        "margin": verdict.margin,
        "elected": verdict.elected,
        "complete": answer.complete,
        "degraded": answer.degraded,
        "decided_early": answer.decided_early,
        "scores": list(verdict.scores),
        "votes": list(verdict.votes),
        "copies": list(verdict.copies),
        "arrived": list(answer.arrived),
        "missing": {
            str(worker): reply.erasures[worker].value if worker in reply.erasures else "not awaited"
            for worker in answer.missing
        },
    }


def _labels(verdict: Verdict, names: Sequence[str]) -> dict[str, object]:
    if isinstance(verdict, LabelVerdict):
        found = [name for name, carries in zip(names, verdict.labels, strict=True) if carries]
        return {"labels": found, "label": ", ".join(found) or None}
    return {"class_id": verdict.class_id, "label": names[verdict.class_id] if verdict.class_id >= 0 else None}
