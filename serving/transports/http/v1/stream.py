"""``WS /v1/stream``: frames in, answers out; where frames come faster than answers, only the latest is kept."""

from __future__ import annotations

import asyncio
import time

import orjson
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from sensai_serve.errors import SensaiError
from sensai_serve.manifest import Manifest
from sensai_serve.tensors import Inputs
from sensai_serve.tokenizer import Texts
from serving.dataplane import DataPlane
from serving.engine.intake.decoding import ImageDecoder
from serving.telemetry.logs import begin_request
from serving.transports.http.v1.inputs import from_json, from_numbers, from_picture
from serving.transports.http.v1.routes import Model, TimeoutMs, Waits, answer, chosen
from serving.v2.status import describe

POLICY_VIOLATION = 1008


class _LatestFrame:
    """Holds the newest frame that has not been taken yet, and counts all frames."""

    def __init__(self) -> None:
        self._frame: tuple[int, bytes | str] | None = None
        self._there = asyncio.Event()
        self.count = 0

    def put(self, frame: bytes | str) -> None:
        """Keep a new frame in place of one that is still waiting."""
        self._frame = self.count, frame
        self.count += 1
        self._there.set()

    async def take(self) -> tuple[int, bytes | str]:
        """Wait for a frame; return its number, counted from 0, and the frame."""
        await self._there.wait()
        self._there.clear()
        assert self._frame is not None
        return self._frame


def router(plane: DataPlane) -> APIRouter:
    """The WebSocket route."""
    routes = APIRouter()

    @routes.websocket("/v1/stream")
    async def stream(socket: WebSocket, model: Model = "", wait: Waits = None, timeout_ms: TimeoutMs = None) -> None:
        """Each binary message is an image, or FP32 numbers where the model takes no images; each text is JSON."""
        await socket.accept()
        begin_request(socket.headers.get("x-request-id"))
        traceparent = socket.headers.get("traceparent")
        try:
            chosen(plane.repository, model)
        except SensaiError as error:
            await socket.send_text(orjson.dumps({"error": str(error)}).decode())
            await socket.close(POLICY_VIOLATION)
            return
        latest = _LatestFrame()
        answering = asyncio.create_task(_answer(plane, socket, latest, model, wait, timeout_ms, traceparent))
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                latest.put(message["bytes"] if message.get("bytes") is not None else message["text"])
        finally:
            answering.cancel()

    return routes


async def _answer(
    plane: DataPlane,
    socket: WebSocket,
    latest: _LatestFrame,
    model: str,
    wait: Waits,
    timeout_ms: TimeoutMs,
    traceparent: str | None,
) -> None:
    while True:
        number, frame = await latest.take()
        started = time.perf_counter()
        if plane.otlp is not None:
            plane.otlp.arrived(traceparent)
        try:
            gateway = chosen(plane.repository, model)  # looked up for each frame: a model may be replaced in between
            inputs = await _inputs(frame, gateway.manifest, plane.images)
            prediction = await answer(plane, gateway, inputs, wait, timeout_ms, started)
            reply, status = {"frame": number, **prediction.model_dump(mode="json")}, "200"
        except Exception as error:
            code, message = describe(error)
            reply, status = {"frame": number, "error": message}, str(code.http)
        plane.telemetry.observe("http", "stream", "WS /v1/stream", status, started)
        try:
            await socket.send_text(orjson.dumps(reply).decode())
        except (WebSocketDisconnect, RuntimeError):
            return  # the client disconnected, as the reader sees too


async def _inputs(frame: bytes | str, manifest: Manifest, decoder: ImageDecoder) -> Inputs | Texts:
    if isinstance(frame, str):
        return from_json(frame, manifest)
    specs = manifest.inputs
    return from_numbers(frame, specs) if specs[0].image is None else await from_picture(frame, specs, decoder)
