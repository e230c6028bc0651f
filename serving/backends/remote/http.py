"""Remote workers over HTTP/1.1 with the binary tensor extension: a kept-alive connection for each worker.

This is slower than gRPC, for servers and networks that have nothing else. A worker is sent one request at a time; other
requests wait in this process, where they can be dropped.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from sensai_serve.errors import BundleError, InputError, ServingError
from sensai_serve.input_spec import DATATYPES
from sensai_serve.manifest import Manifest
from sensai_serve.remote_names import SCORES, model_name
from serving.backends import HOLDS, Cause, Scores, Task
from serving.backends.remote.http_client import HEADER_LENGTH, HttpClientProtocol
from serving.backends.remote.identity import ModelDescription, version_for
from serving.backends.remote.message import EncodedInput
from serving.backends.remote.pieces import PiecedInput
from serving.backends.remote.server import CONNECT_S, QUIET_S, SILENT_S, WorkerReports
from serving.runtime.endpoint import WorkerEndpoint
from serving.runtime.trace_context import TRACEPARENT
from serving.security.tls import client_context


class RemoteHttpConnection:
    """See `serving.backends.remote.server.RemoteConnection`."""

    def __init__(
        self,
        endpoint: WorkerEndpoint,
        models: dict[int, str],
        manifest: Manifest,
        max_batch: int,
        reports: WorkerReports,
    ) -> None:
        """Nothing is connected before `open`. See `serving.backends.remote.grpc.RemoteGrpcConnection`."""
        self.takes_pieces = self.relays = False  # inputs are handed on over gRPC alone
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._endpoint = endpoint
        self._models = models
        self._manifest = manifest
        self._max_batch = max_batch
        self._reports = reports
        self._workers: dict[int, _WorkerConnection] = {}
        self._control: HttpClientProtocol | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and check that the server is live. See `RemoteConnection`."""
        self._control = await self._connect()
        status, _ = await self._get("/v2/health/live")
        if status != 200:
            raise InputError(f"{self._endpoint.server} {_refusal(status)}")
        self._watching = asyncio.create_task(self._watch())

    async def check(self, worker: int) -> None:
        """Check a worker against the bundle, and open a connection to it. See `RemoteConnection`."""
        model = self._models[worker] or model_name(self._manifest, worker)
        where = f"{model} at {self._endpoint.server}"
        status, body = await self._get(f"/v2/models/{model}/config")
        if status in (400, 404):
            raise BundleError(f"worker {worker}: {self._endpoint.server} serves no model {model!r}")
        if status != 200:
            raise ServingError(f"worker {worker}: {self._endpoint.server} {_refusal(status)}")
        version = version_for(self._manifest, worker, self._max_batch, where, _described(body, where))
        path = f"/v2/models/{model}/versions/{version}"
        if (await self._get(f"{path}/ready"))[0] != 200:
            raise ServingError(f"worker {worker}: {where} is not ready")
        if worker in self._workers:
            await self._workers.pop(worker).close()
        self._workers[worker] = _WorkerConnection(
            await self._connect(), worker, f"{path}/infer", self._reports, self._break
        )

    def submit(self, task: Task, message: EncodedInput, workers: Sequence[int]) -> None:
        """See `RemoteConnection`."""
        for worker in workers:
            if worker in self._workers:
                self._workers[worker].submit(task, message)
            else:
                task.fail(worker, Cause.DEAD)

    def relay(self, task: Task, message: PiecedInput, workers: Sequence[int]) -> None:
        """See `RemoteConnection`; never called, because `relays` is not set."""
        for worker in workers:
            task.fail(worker, Cause.DEAD)

    async def close(self) -> None:
        """See `RemoteConnection`."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))
        if self._control is not None:
            self._control.close()

    async def _connect(self) -> HttpClientProtocol:
        endpoint, security = self._endpoint, self._endpoint.security
        try:
            context = client_context(security) if endpoint.encrypted else None
            head = f"Host: {endpoint.address}\r\n"
            if (token := security.token()) is not None:
                head += f"Authorization: Bearer {token}\r\n"
            async with asyncio.timeout(CONNECT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: HttpClientProtocol(head), endpoint.host, endpoint.port, ssl=context
                )
        except TimeoutError:
            raise ServingError(f"{endpoint.server} does not answer") from None
        except ssl.SSLCertVerificationError as error:
            raise InputError(f"{endpoint.server} cannot be trusted: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise InputError(f"{endpoint.server} fails the TLS handshake ({error.reason or error})") from None
        except OSError as error:
            raise ServingError(f"{endpoint.server} cannot be reached ({error.strerror or error})") from None
        return connection

    async def _get(self, path: str) -> tuple[int, bytes]:
        assert self._control is not None
        try:
            async with asyncio.timeout(SILENT_S):  # `wait_for` can lose a cancellation, and `_watch` would never end
                status, _, body = await self._control.ask("GET", path)
        except (OSError, TimeoutError) as error:
            reason = str(error) or "no answer"
            self._control.close()  # an answer that comes late must not be taken for that to the next request
            self._break(f"cannot be reached ({reason})")
            raise ServingError(f"{self._endpoint.server} cannot be reached ({reason})") from None
        return status, body

    def _break(self, reason: str) -> None:
        if not self.broken.done():
            self.broken.set_result(reason)

    async def _watch(self) -> None:
        """Ask a quiet server whether it is live: a cut network reports nothing."""
        while True:
            await asyncio.sleep(QUIET_S)
            heard = max((worker.connection.heard for worker in self._workers.values()), default=0.0)
            if time.monotonic() - heard < QUIET_S:
                continue
            try:
                await self._get("/v2/health/live")
            except ServingError:
                return


class _WorkerConnection:
    """One worker's connection, and the tasks that wait for it."""

    def __init__(
        self, connection: HttpClientProtocol, worker: int, path: str, reports: WorkerReports, on_end: Any
    ) -> None:
        self.connection = connection
        self._worker = worker
        self._path = path
        self._reports = reports
        self._on_end = on_end
        self._waiting: deque[tuple[Task, EncodedInput]] = deque()
        self._running: Task | None = None
        self._wake = asyncio.Event()
        self._working = asyncio.create_task(self._work())

    def submit(self, task: Task, message: EncodedInput) -> None:
        self._waiting = deque(entry for entry in self._waiting if not entry[0].closed)
        running = self._running is not None and not self._running.closed
        if len(self._waiting) + running >= HOLDS:
            task.fail(self._worker, Cause.FULL)
            return
        self._waiting.append((task, message))
        self._wake.set()

    async def close(self) -> None:
        self._working.cancel()
        await asyncio.gather(self._working, return_exceptions=True)
        self.connection.close()
        for task in [*([self._running] if self._running else []), *(task for task, _ in self._waiting)]:
            task.fail(self._worker, Cause.DEAD)
        self._waiting.clear()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                task, message = self._waiting.popleft()
                if task.closed:
                    continue
                self._running = task
                header, raw = message.http
                started = time.perf_counter()
                try:
                    given = {HEADER_LENGTH: str(len(header))}
                    if message.traceparent is not None:
                        given[TRACEPARENT] = message.traceparent
                    status, headers, body = await self.connection.ask("POST", self._path, (header, raw), given)
                    scores = _scores(headers, body) if status == 200 else None
                except (OSError, ValueError, LookupError, TypeError) as error:
                    self._on_end(" ".join(str(error).split()) or "the answer cannot be read")
                    return  # `close` fails the tasks that are left
                self._running = None
                if scores is not None:
                    task.deliver(self._worker, scores, time.perf_counter() - started)
                else:
                    task.fail(self._worker, Cause.FAILED)
                    self._reports.failed(self._worker)


def _scores(headers: dict[str, str], body: bytes) -> Scores:
    length = int(headers[HEADER_LENGTH])
    (output,) = [each for each in json.loads(body[:length])["outputs"] if each["name"] == SCORES]
    if output["datatype"] != "FP32":
        raise ValueError(f"{SCORES} are {output['datatype']}, expected FP32")
    return np.frombuffer(body, "<f4", offset=length).reshape(output["shape"])


def _described(body: bytes, where: str) -> ModelDescription:
    def shapes(tensors: Any, kinds: Collection[str]) -> dict[str, tuple[int, ...]]:
        return {t["name"]: tuple(map(int, t["dims"])) for t in tensors if t["data_type"] in kinds}

    try:
        config = json.loads(body)
        parameters = {key: str(value["string_value"]) for key, value in config.get("parameters", {}).items()}
        inputs, outputs = shapes(config["input"], _TAKEN), shapes(config["output"], ("TYPE_FP32",))
        return ModelDescription(parameters, inputs, outputs, int(config["max_batch_size"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise BundleError(f"{where} has a configuration that cannot be read") from None


_TAKEN = [f"TYPE_{datatype}" for datatype in DATATYPES]
"""The types of inputs, as configurations name them."""


def _refusal(status: int) -> str:
    if status in (401, 403):
        return "refuses access: the token is missing or wrong"
    return f"answers {status}, expected 200"
