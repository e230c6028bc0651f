"""Answers calls of ModelInfer that pygrpc-native hands over: at once where they are common, else as grpcio's are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from pygrpc_native import EVENT_CANCEL, NativeGrpcFront

from sensai_serve.errors import RequestError, TooLargeError
from serving.security.access import Access
from serving.transports.grpc.inference_servicer import STOPPING, InferenceServicer
from serving.transports.grpc.roles import PREDICT, shown_token
from serving.transports.grpc_native.fast_path import GrpcFastPath, Metadata
from serving.v2.status import describe

BATCH = 64
"""Calls that are handed over at a time, at most."""


@dataclass(frozen=True)
class CallContext:
    """What `InferenceServicer` asks of a call's context."""

    metadata: Metadata
    client: str
    remaining_s: float | None

    def invocation_metadata(self) -> Metadata:
        """What the client sent beside the message."""
        return self.metadata

    def peer(self) -> str:
        """The connection that the call came by."""
        return self.client

    def time_remaining(self) -> float | None:
        """Seconds that the client still waits; None for as long as it takes."""
        return self.remaining_s

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with an error."""
        raise _AbortedError(code, details)


class _AbortedError(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        self.details = details


class NativeCalls:
    """The calls of one listener. All methods are called on the event loop's thread."""

    def __init__(
        self,
        front: NativeGrpcFront,
        servicer: InferenceServicer,
        parse: Callable[[bytes], Message | RequestError],
        fast_path: GrpcFastPath,
        access: Access,
        most: int,
    ) -> None:
        """Answer nothing yet.

        Args:
            front: receives the calls; of one method.
            servicer: answers those that are not common.
            parse: parses their messages.
            fast_path: answers the common ones.
            access: what clients may do.
            most: the longest message in bytes.
        """
        self._front = front
        self._servicer = servicer
        self._parse = parse
        self._fast_path = fast_path
        self._access = access
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stopping = False
        self.done = asyncio.Event()
        """Set when no more calls come."""

    def start(self) -> None:
        """Begin to answer."""
        self._front.start()
        threading.Thread(target=self._receive, name="grpc-native", daemon=True).start()

    async def stop(self, drain_s: float) -> None:
        """Refuse new calls, and give those that are being answered some time.

        Args:
            drain_s: that time in seconds.
        """
        self._stopping = True
        tasks = set(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End all connections, those too whose calls the other server answers. The calls have stopped."""
        await asyncio.to_thread(self._front.close)
        await self.done.wait()

    def _receive(self) -> None:
        """Hand calls over to the event loop, on a thread of its own, until the front is closed."""
        while (events := self._front.recv_batch_details(BATCH)) is not None:
            self._loop.call_soon_threadsafe(self._take, events)
        self._loop.call_soon_threadsafe(self.done.set)

    def _take(self, events: list[Any]) -> None:
        begun = set[str]()
        for kind, call, _, message, _, details in events:
            if kind == EVENT_CANCEL:
                if (task := self._tasks.get(call)) is not None:
                    task.cancel()
                continue
            if self._stopping:
                self._fail(call, grpc.StatusCode.UNAVAILABLE, STOPPING)
                continue
            context = CallContext(*details)
            # Of several calls of one connection the first is answered at once; the others take turns with those of
            # other connections.
            if context.client not in begun:
                begun.add(context.client)
                if self._answered_at_once(call, message, context):
                    continue
            task = self._tasks[call] = self._loop.create_task(self._answer(call, message, context))
            task.add_done_callback(partial(self._ended, call))  # one that is cancelled now never begins

    def _answered_at_once(self, call: int, message: bytes, context: CallContext) -> bool:
        try:
            return self._fast_path.answer(message, context.metadata, partial(self._front.respond, call))
        except Exception as error:
            self._refuse(call, error)
        return True

    async def _answer(self, call: int, message: bytes, context: CallContext) -> None:
        try:
            self._access.check(PREDICT, shown_token(context.metadata))
            if len(message) > self._most:
                raise TooLargeError(f"the message has {len(message)} bytes, expected at most {self._most}")
            request = self._parse(message)
            reply = await self._servicer.ModelInfer(request, context)
            self._front.respond(call, reply.SerializeToString())
            self._fast_path.learn(message, context.metadata, request)
        except _AbortedError as error:
            self._fail(call, error.code, error.details)
        except asyncio.CancelledError:
            if self._stopping:
                self._fail(call, grpc.StatusCode.UNAVAILABLE, STOPPING)
            raise
        except Exception as error:
            self._refuse(call, error)

    def _ended(self, call: int, _: asyncio.Task[None]) -> None:
        self._tasks.pop(call, None)

    def _refuse(self, call: int, error: Exception) -> None:
        status, text = describe(error)
        self._fail(call, grpc.StatusCode[status.grpc], text)

    def _fail(self, call: int, code: grpc.StatusCode, text: str) -> None:
        number: int = code.value[0]
        self._front.fail(call, number, text)
