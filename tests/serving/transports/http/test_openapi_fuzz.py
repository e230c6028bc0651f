"""schemathesis over the OpenAPI document (`make soak`): nothing that it makes up ends in an internal error.

It runs where SENSAI_SCHEMATHESIS_VENV names a virtual environment that has the package ``schemathesis``; skipped
elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.soak

NAMES = '[parameters]\n"path.name" = "tiny"\n"path.version" = "1"\n'
# Not "not_a_server_error": 503 is the right answer to a deadline of no time; 500 is looked for in the metrics.
CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.parametrize("names", ["", NAMES], ids=["names made up", "a model that is there"])
def test_nothing_made_up_is_an_internal_error(run_server, tiny_bundle, tmp_path: Path, names: str) -> None:
    environment = os.environ.get("SENSAI_SCHEMATHESIS_VENV")
    if environment is None:
        pytest.skip("no schemathesis: SENSAI_SCHEMATHESIS_VENV names no environment that has it")
    config = tmp_path / "schemathesis.toml"
    config.write_text(names)
    shutil.copytree(tiny_bundle, tmp_path / "models/tiny")
    with run_server(tmp_path / "models/tiny", repository=tmp_path / "models") as server:
        # Without unload: once the model is gone, the rest of the run would meet "unknown model" alone.
        command = [f"{environment}/bin/schemathesis", "--config-file", str(config), "run",
                   f"{server.url}/openapi.json", "--checks", CHECKS, "--exclude-path-regex", "/unload$",
                   "--max-examples", "100", "--max-time", "100", "--continue-on-failure", "--no-color"]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
        failed = [line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if 'status="500"' in line]
    print(done.stdout[done.stdout.find("= SUMMARY") :])
    assert failed == []
