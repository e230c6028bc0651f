"""``WS /v1/stream``: frames in, answers out; where frames come faster than answers, only the latest is kept."""

from __future__ import annotations

import asyncio
import time

import orjson
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from sensai_serve.errors import OverloadedError, SensaiError
from sensai_serve.manifest import Manifest
from sensai_serve.tensors import Inputs
from sensai_serve.tokenizer import Texts
from serving.dataplane import DataPlane
from serving.engine.intake.body_budget import FULL, BodyBudget, HeldBody
from serving.engine.intake.decoding import ImageDecoder
from serving.telemetry.logs import begin_request
from serving.transports.http.v1.inputs import from_json, from_numbers, from_picture
from serving.transports.http.v1.routes import Model, TimeoutMs, Waits, answer, chosen
from serving.v2.status import describe

POLICY_VIOLATION = 1008


class _LatestFrame:
    """Holds the newest frame that has not been taken yet, and counts all frames."""

    def __init__(self, bodies: BodyBudget) -> None:
        self._bodies = bodies
        self._frame: tuple[int, bytes | str | None, HeldBody] | None = None
        self._there = asyncio.Event()
        self.count = 0

    def put(self, frame: bytes | str) -> None:
        """Keep a new frame in place of one that is still waiting."""
        self.drop()
        held = self._bodies.hold()
        self._frame = self.count, frame if held.add(len(frame)) else None, held
        self.count += 1
        self._there.set()

    def drop(self) -> None:
        """Forget the frame that is waiting, if any."""
        if self._frame is not None:
            self._frame[2].release()
            self._frame = None

    async def take(self) -> tuple[int, bytes | str | None, HeldBody]:
        """Wait for a frame.

        Returns:
            Its number, counted from 0; the frame, None where there was no room for it; and what counts its bytes until
            it is answered.
        """
        await self._there.wait()
        self._there.clear()
        assert self._frame is not None
        taken, self._frame = self._frame, None
        return taken


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
        latest = _LatestFrame(plane.bodies)
        answering = asyncio.create_task(_answer(plane, socket, latest, model, wait, timeout_ms, traceparent))
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                latest.put(message["bytes"] if message.get("bytes") is not None else message["text"])
        finally:
            answering.cancel()
            latest.drop()

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
        number, frame, held = await latest.take()
        started = time.perf_counter()
        if plane.otlp is not None:
            plane.otlp.arrived(traceparent)
        try:
            if frame is None:
                raise OverloadedError(FULL)
            gateway = chosen(plane.repository, model)  # looked up for each frame: a model may be replaced in between
            inputs = await _inputs(frame, gateway.manifest, plane.images)
            prediction = await answer(plane, gateway, inputs, wait, timeout_ms, started)
            reply, status = {"frame": number, **prediction.model_dump(mode="json")}, "200"
        except Exception as error:
            code, message = describe(error)
            reply, status = {"frame": number, "error": message}, str(code.http)
        finally:
            held.release()
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
