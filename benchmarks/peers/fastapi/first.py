"""The first answer of several replicas of one network, each in a process of its own."""
# mypy: ignore-errors

import asyncio
import json
import multiprocessing
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response

settings = json.loads(Path("settings.json").read_text())
name, shape = settings["input"], (1, *settings["shape"])
spawn = multiprocessing.get_context("spawn")
opened = {}  # of a replica's process: its session, and the seconds that it takes longer


def open_session(at: int) -> None:
    """Open a replica's session, in its own process."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    opened["session"] = ort.InferenceSession(settings["networks"][at], options)
    opened["delay_s"] = settings["delays_ms"][at] / 1000
    Path(f"replica-{at}.pid").write_text(str(os.getpid()))


def scores_of(body: bytes) -> bytes:
    """The tensor's bytes in, the scores' bytes out."""
    time.sleep(opened["delay_s"])
    return opened["session"].run(None, {name: np.frombuffer(body, np.float32).reshape(shape)})[0].tobytes()


class Replica:
    """A process that runs the network, started again when it has died."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.start()

    def start(self) -> None:
        """Start the process, which opens its session."""
        self.pool = ProcessPoolExecutor(1, spawn, open_session, (self.at,))

    async def ask(self, body: bytes) -> bytes:
        """The scores; the process is started again where it has died."""
        pool = self.pool
        try:
            return await asyncio.wrap_future(pool.submit(scores_of, body))
        except BrokenProcessPool:
            if pool is self.pool:
                self.start()
            raise


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the replicas, and wait until each has answered."""
    app.state.replicas = [Replica(at) for at in range(len(settings["networks"]))]
    await asyncio.gather(*(one.ask(np.zeros(shape, np.float32).tobytes()) for one in app.state.replicas))
    yield
    for one in app.state.replicas:
        one.pool.shutdown(cancel_futures=True)


app = FastAPI(lifespan=lifespan)


@app.get("/ready")
async def ready() -> dict[str, str]:
    """All replicas have answered."""
    return {}


@app.post("/raw")
async def raw(request: Request) -> Response:
    """The scores of the replica that answers first."""
    body = await request.body()
    waiting = {asyncio.create_task(one.ask(body)) for one in app.state.replicas}
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                for other in waiting:
                    other.cancel()
                return Response(task.result(), media_type="application/octet-stream")
    return Response(status_code=503)


if __name__ == "__main__":
    uvicorn.run(app, port=settings["port"], loop="uvloop", http="httptools", log_level="warning", access_log=False)
