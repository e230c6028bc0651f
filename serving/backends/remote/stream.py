"""One bidirectional stream to workers on a server: requests go out as they come, scores come in as workers end.

A `NodeStream` serves all workers of a `sensai node`, and sends an input once. A `WorkerStream` serves one model of any
server of the protocol, which answers in order. Such a server cannot be told that an answer is no longer wanted, so it
is sent two requests at most, and the others wait in this process, where they can be dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from serving.backends import HOLDS, Cause, Task
from serving.backends.remote.message import (
    DOWN,
    FAILED,
    RUN_US,
    UP,
    EncodedInput,
    head,
    particulars,
    raw_contents,
    scores_of,
    worker_of,
)
from serving.backends.remote.pieces import PiecedInput
from serving.backends.remote.server import WorkerReports

WINDOW = 2
"""Requests that a `WorkerStream` has at the server at a time: one runs, one waits."""
KEPT = 64
"""Requests of one node's stream that are kept after their answer, for copies that come late."""


class Pipe:
    """An open ModelStreamInfer call: writes messages in order, and passes on what it reads."""

    def __init__(
        self, call: Any, on_reply: Callable[[pb.ModelStreamInferResponse], None], on_end: Callable[[str], None]
    ) -> None:
        """Start to read and write.

        Args:
            call: an open ModelStreamInfer call of `grpc.aio`, without serialisers.
            on_reply: called with every message; an exception of it ends the call.
            on_end: called once, with the reason why the call has ended.
        """
        self.heard = time.monotonic()
        """`time.monotonic` when the server last sent anything."""
        self._call = call
        self._on_reply = on_reply
        self._on_end = on_end
        self._outbox: deque[tuple[Task, bytes]] = deque()
        self._wake = asyncio.Event()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    def send(self, task: Task, message: bytes) -> None:
        """Write a message in its turn, unless its task is closed by then."""
        self._outbox.append((task, message))
        self._wake.set()

    async def close(self) -> None:
        """Cancel the call."""
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        with contextlib.suppress(
            grpc.aio.AioRpcError, asyncio.InvalidStateError
        ):  # the reader reports why the call ended
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._outbox:
                    task, message = self._outbox.popleft()
                    if not task.closed:
                        await self._call.write(message)

    async def _read(self) -> None:
        reason = "the server ended the stream"
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self.heard = time.monotonic()
                self._on_reply(pb.ModelStreamInferResponse.FromString(data))
        except grpc.aio.AioRpcError as error:
            reason = error.details() or error.code().name
        except Exception as error:  # an answer that cannot be read ends the connection
            reason = f"the answer cannot be read ({' '.join(str(error).split())})"
        self._on_end(reason)


class _Sent:
    """One task that was sent on one stream."""

    __slots__ = ("at", "left", "task", "told")

    def __init__(self, task: Task, workers: Sequence[int]) -> None:
        self.task = task
        self.left = set(workers)  # workers that have not answered
        self.at = time.perf_counter()
        self.told = False  # the node was told that the answer is no longer wanted


class NodeStream:
    """The stream to all workers of one version at one node; `serving.node.gateway_stream` is its other end."""

    def __init__(
        self,
        call: Any,
        model: str,
        version: str,
        reports: WorkerReports,
        on_end: Callable[[str], None],
        below: bytes = b"",
    ) -> None:
        """Start to read and write.

        Args:
            call: an open ModelStreamInfer call, see `Pipe`.
            model: the model of all workers, named as the bundle.
            version: the version of the bundle.
            reports: told of changes of single workers.
            on_end: called once, with the reason why the call has ended.
            below: tells the node whom it hands inputs on to, see `message.below`; empty where it does not.
        """
        self.pipe = Pipe(call, self._received, on_end)
        self._model = model
        self._version = version
        self._reports = reports
        self._ticket = 0
        self._sent: dict[int, _Sent] = {}
        if below:
            self.pipe.send(_ALWAYS, head(model, version) + below)

    def submit(self, task: Task, message: EncodedInput, workers: Sequence[int]) -> None:
        """Send an input once for these workers, and with it which answers are no longer wanted."""
        there, closed = self._take(task, workers)
        if there:
            start = head(self._model, self._version, tuple(there))
            own = particulars(self._ticket, closed, message.timeout_s, message.traceparent)
            self.pipe.send(task, b"".join((start, own, message.grpc)))

    def relay(self, task: Task, message: PiecedInput, workers: Sequence[int]) -> None:
        """Send an input piece by piece, as they come, for workers of this node and of nodes below it."""
        there, closed = self._take(task, workers)
        if not there:
            return
        start = head(self._model, self._version, tuple(there))
        own = particulars(self._ticket, closed, message.timeout_s, message.traceparent, message.count)
        before = [start + own]
        after = head(self._model, self._version) + particulars(self._ticket, pieces=0)

        def send(piece: bytes) -> None:
            self.pipe.send(task, b"".join((before.pop() if before else after, raw_contents(len(piece)), piece)))

        message.follow(send)

    def _take(self, task: Task, workers: Sequence[int]) -> tuple[list[int], list[int]]:
        """Give a task the next ticket; the workers that take it, none where all are full, and the tickets to close."""
        closed: list[int] = []
        busy: dict[int, int] = {}
        for ticket, sent in self._sent.items():
            if not sent.task.closed:
                for worker in sent.left:
                    busy[worker] = busy.get(worker, 0) + 1
            elif not sent.told:
                sent.told = True
                closed.append(ticket)
        there = []
        for worker in workers:
            if busy.get(worker, 0) >= HOLDS:
                task.fail(worker, Cause.FULL)
            else:
                there.append(worker)
        if there:
            self._ticket += 1
            self._sent[self._ticket] = _Sent(task, there)
            if len(self._sent) > KEPT:
                self._forget()
        return there, closed

    async def close(self) -> None:
        """Cancel the call; open tasks fail."""
        await self.pipe.close()
        for sent in self._sent.values():
            for worker in sent.left:
                sent.task.fail(worker, Cause.DEAD)
        self._sent.clear()

    def _received(self, message: pb.ModelStreamInferResponse) -> None:
        reply, parameters = message.infer_response, message.infer_response.parameters
        if not reply.id:
            if message.error_message:
                self._reports.relays_nothing(message.error_message)
            for key, up in ((UP, True), (DOWN, False)):
                if key in parameters and reply.model_version == self._version:
                    self._reports.changed(int(parameters[key].string_param), up=up)
            return
        sent = self._sent.get(int(reply.id))
        if sent is None:
            return
        if message.error_message:
            for worker in sent.left:
                sent.task.fail(worker, Cause.FAILED)
                self._reports.failed(worker)
            del self._sent[int(reply.id)]
            return
        took = parameters[RUN_US].string_param.split(",") if reply.outputs else []
        for at, (output, run_us) in enumerate(zip(reply.outputs, took, strict=True)):
            worker = worker_of(output.name)
            if worker in sent.left:
                sent.left.discard(worker)
                sent.task.deliver(worker, scores_of(reply, at), int(run_us) / 1e6)
        for failure in filter(None, parameters[FAILED].string_param.split(",") if FAILED in parameters else ()):
            number, _, cause = failure.partition(":")
            if int(number) in sent.left:
                sent.left.discard(int(number))
                sent.task.fail(int(number), Cause(cause))
        if not sent.left:
            del self._sent[int(reply.id)]

    def _forget(self) -> None:
        """Forget the oldest answered requests: a worker that hangs never answers them."""
        closed = [ticket for ticket, sent in self._sent.items() if sent.task.closed and sent.told]
        for ticket in closed[: KEPT // 2]:
            del self._sent[ticket]


class WorkerStream:
    """The stream to one worker, a model of any server of the protocol."""

    def __init__(
        self, call: Any, worker: int, model: str, version: str, reports: WorkerReports, on_end: Callable[[str], None]
    ) -> None:
        """Start to read and write.

        Args:
            call: an open ModelStreamInfer call, see `Pipe`.
            worker: its id.
            model: the worker's model.
            version: the version of that model.
            reports: told of failures of the worker.
            on_end: called once, with the reason why the call has ended.
        """
        self.pipe = Pipe(call, self._received, on_end)
        self._worker = worker
        self._start = head(model, version)
        self._reports = reports
        self._ticket = 0
        self._held: deque[tuple[Task, EncodedInput]] = deque()
        self._given: deque[_Sent] = deque()
        self._since = 0.0

    def submit(self, task: Task, message: EncodedInput) -> None:
        """Send an input, or hold it until fewer requests are at the server."""
        self._held = deque(entry for entry in self._held if not entry[0].closed)
        if len(self._held) + sum(not sent.task.closed for sent in self._given) >= HOLDS:
            task.fail(self._worker, Cause.FULL)
            return
        self._held.append((task, message))
        self._hand_over()

    async def close(self) -> None:
        """Cancel the call; open tasks fail."""
        await self.pipe.close()
        for task in [*(sent.task for sent in self._given), *(task for task, _ in self._held)]:
            task.fail(self._worker, Cause.DEAD)
        self._given.clear()
        self._held.clear()

    def _hand_over(self) -> None:
        while self._held and len(self._given) < WINDOW:
            task, message = self._held.popleft()
            if task.closed:
                continue
            self._ticket += 1
            self._given.append(_Sent(task, (self._worker,)))
            own = particulars(self._ticket, timeout_s=message.timeout_s)
            self.pipe.send(_ALWAYS, b"".join((self._start, own, message.grpc)))

    def _received(self, message: pb.ModelStreamInferResponse) -> None:
        now = time.perf_counter()
        sent = self._given.popleft()
        if message.error_message:
            sent.task.fail(self._worker, Cause.FAILED)
            self._reports.failed(self._worker)
        else:
            # The server does not say how long the subnet took: count from the later of the last answer and the sending.
            sent.task.deliver(self._worker, scores_of(message.infer_response, 0), now - max(sent.at, self._since))
        self._since = now
        self._hand_over()


class _Always:
    """A task that is never closed: replies match requests by order, so a counted request must be sent."""

    closed = False


_ALWAYS: Any = _Always()
