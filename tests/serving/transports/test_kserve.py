"""The KServe SDK's inference clients, REST and gRPC, against this server.

They run where SENSAI_KSERVE_VENV names a virtual environment that has the package ``kserve``; skipped elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensai_serve.bundles import Bundle
from serving.v2.tensors import OUTPUTS

CALLS = Path(__file__).with_name("kserve_calls.py")


@pytest.fixture(scope="module", params=["rest", "grpc"])
def found(request: pytest.FixtureRequest, run_server, tiny_bundle, tmp_path_factory) -> dict[str, Any]:
    """What every call gave."""
    environment = os.environ.get("SENSAI_KSERVE_VENV")
    if environment is None:
        pytest.skip("no KServe: SENSAI_KSERVE_VENV names no environment that has it")
    path = tmp_path_factory.mktemp("kserve") / "inputs.npy"
    np.save(path, Bundle.open(tiny_bundle).golden().inputs)
    with run_server(tiny_bundle, grpc="127.0.0.1:0") as server:
        address = server.address if request.param == "rest" else server.grpc
        command = [f"{environment}/bin/python", str(CALLS), request.param, address, "tiny", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_health(found) -> None:
    assert [found[name] for name in ("live", "ready", "model ready", "nobody ready")] == [True, True, True, False]


@pytest.mark.parametrize("binary", [False, True])
def test_infer(found, tiny_bundle, binary: bool) -> None:
    golden = Bundle.open(tiny_bundle).golden()
    reply = found[f"all, binary {binary}"]
    assert (reply["id"], reply["model"], set(reply["outputs"])) == ("mine", "tiny", set(OUTPUTS))
    assert reply["outputs"]["class_id"] == golden.class_id.tolist()
    assert np.allclose(reply["outputs"]["scores"], golden.scores, atol=1e-3)


def test_the_outputs_asked_for(found, tiny_bundle) -> None:
    assert found["one"]["outputs"] == {"class_id": Bundle.open(tiny_bundle).golden().class_id.tolist()}


def test_errors_reach_the_user(found) -> None:
    assert "unknown model 'nobody'" in found["nobody"]
    assert "expected" in found["wrong shape"]
    assert "shape" in found["wrong shape"]
