"""A FastAPI application with one route, run by uvicorn: what a start costs that loads no model.

Run as ``python -m benchmarks.subjects.empty_app PORT``.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/ready")
async def ready() -> dict[str, bool]:
    """Say that the server answers."""
    return {"ready": True}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
