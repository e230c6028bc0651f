"""Scores of one network, or of several side by side, over FastAPI: tensors as raw bytes, or as JSON."""
# mypy: ignore-errors

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

settings = json.loads(Path("settings.json").read_text())
name, shape = settings["input"], (1, *settings["shape"])
options = ort.SessionOptions()
options.intra_op_num_threads = settings["threads"]
sessions = [ort.InferenceSession(file, options) for file in settings["networks"]]
pool = ThreadPoolExecutor(len(sessions))
app = FastAPI()


def scores_of(tensor: np.ndarray) -> np.ndarray:
    """FP32 [scores of all networks]."""
    feed = {name: tensor}
    if settings["mode"] == "threads":
        found = pool.map(lambda session: session.run(None, feed)[0], sessions)
    else:
        found = (session.run(None, feed)[0] for session in sessions)
    return np.concatenate([scores[0] for scores in found])


class Input(BaseModel):
    """The tensor's numbers, row-major."""

    data: list[float]


class Output(BaseModel):
    """All scores."""

    scores: list[float]


@app.get("/ready")
async def ready() -> dict[str, str]:
    """The sessions are open."""
    return {}


@app.post("/raw")
async def raw(request: Request) -> Response:
    """The tensor's bytes in, the scores' bytes out."""
    tensor = np.frombuffer(await request.body(), np.float32).reshape(shape)
    return Response(scores_of(tensor).tobytes(), media_type="application/octet-stream")


@app.post("/json")
async def as_json(given: Input) -> Output:
    """The same as JSON."""
    tensor = np.array(given.data, np.float32).reshape(shape)
    return Output(scores=scores_of(tensor).tolist())


if __name__ == "__main__":
    uvicorn.run(app, port=settings["port"], loop="uvloop", http="httptools", log_level="warning", access_log=False)
