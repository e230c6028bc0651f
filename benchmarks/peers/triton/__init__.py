"""tritonserver 2.51 with its Python backend, out of the wheel nvidia-pytriton 0.7.0.

Not Triton's native path: the wheel has no ONNX Runtime backend, so its Python backend runs the ONNX files, each model
in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness.client import Client, RawClient
from benchmarks.harness.codecs import V2Binary
from benchmarks.harness.servers import HOST, ServerSpec
from benchmarks.harness.triton_client import TritonClient
from benchmarks.peers import LEAN, Peer, PeerWorkload, Setup, lean, spec, write_networks
from sensai_serve.preprocess import Floats

_MODEL = "networks"


def _site_packages(work: PeerWorkload) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return work.python.parent.parent / "lib" / version / "site-packages"


def _start(work: PeerWorkload, ensemble: bool, mode: str) -> ServerSpec:
    site = _site_packages(work)
    server = site / "pytriton" / "tritonserver"
    backends = work.folder / "backends"
    shutil.copytree(server / "backends" / "python", backends / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = backends / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    repository = work.folder / "repository"
    if ensemble:
        for at in range(len(work.networks)):
            _write_model(work, repository / f"network-{at}", [at], mode)
        _write_ensemble(work, repository / _MODEL)
    else:
        _write_model(work, repository / _MODEL, range(len(work.networks)), mode)
    grpc, metrics = work.more_ports
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={repository}",
               f"--backend-directory={backends}", f"--http-port={work.port}", f"--grpc-port={grpc}",
               f"--metrics-port={metrics}", *(f"--{kind}-address={HOST}" for kind in ("http", "grpc", "metrics")),
               "--log-verbose=0"]  # fmt: skip
    libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return spec(work, "tritonserver", command, "/v2/health/ready", {"LD_LIBRARY_PATH": libraries})


def _write_model(work: PeerWorkload, folder: Path, networks: Sequence[int], mode: str) -> None:
    """A model of the Python backend that runs some of the networks."""
    (folder / "1").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("app.py"), folder / "1" / "model.py")
    files = write_networks(work, folder / "1")
    settings = {
        "site_packages": str(_site_packages(work)),
        "networks": [files[at] for at in networks],
        "input": work.input,
        "threads": work.threads,
        "mode": mode,
        "delay_ms": sum(work.delays_ms[at] for at in networks) if work.delays_ms else 0.0,
    }
    (folder / "1" / "settings.json").write_text(json.dumps(settings))
    width = sum(work.widths[at] for at in networks)
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}"\nbackend: "python"\nmax_batch_size: 64\n{_tensors(work, [("scores", width)])}'
        "instance_group [{ count: 1, kind: KIND_CPU }]\n"
    )


def _write_ensemble(work: PeerWorkload, folder: Path) -> None:
    """All networks as steps of an ensemble, which Triton runs side by side."""
    (folder / "1").mkdir(parents=True)
    given = f'input_map {{ key: "{work.input}", value: "{work.input}" }}'
    steps = ",".join(
        f'{{ model_name: "network-{at}", model_version: -1, {given}, '
        f'output_map {{ key: "scores", value: "scores_{at}" }} }}'
        for at in range(len(work.networks))
    )
    outputs = [(f"scores_{at}", width) for at, width in enumerate(work.widths)]
    (folder / "config.pbtxt").write_text(
        f'name: "{_MODEL}"\nplatform: "ensemble"\nmax_batch_size: 64\n{_tensors(work, outputs)}'
        f"ensemble_scheduling {{ step [{steps}] }}\n"
    )


def _tensors(work: PeerWorkload, outputs: Sequence[tuple[str, int]]) -> str:
    given = f'input [{{ name: "{work.input}", data_type: TYPE_FP32, dims: {list(work.shape)} }}]\n'
    each = ",".join(f'{{ name: "{name}", data_type: TYPE_FP32, dims: [{width}] }}' for name, width in outputs)
    return f"{given}output [{each}]\n"


def _all_clients(work: PeerWorkload, samples: Sequence[Floats]) -> Mapping[str, Client]:
    """The lean client, and tritonclient over both protocols."""

    def triton(protocol: str, port: int) -> Client:
        return TritonClient(protocol, HOST, port, _MODEL, samples, input_name=work.input, outputs=("scores",))

    return {
        LEAN: RawClient(HOST, work.port, V2Binary(_MODEL, work.input, ("scores",)), samples),
        "tritonclient HTTP": triton("http", work.port),
        "tritonclient gRPC": triton("grpc", work.more_ports[0]),
    }


def _of_ensemble(work: PeerWorkload) -> V2Binary:
    return V2Binary(_MODEL, work.input, tuple(f"scores_{at}" for at in range(len(work.networks))))


ENSEMBLE = Setup("v2 binary, ensemble", True, partial(_start, ensemble=True, mode=""), lean(_of_ensemble))
"""Each network is a step of an ensemble; the ensemble fails where a step fails."""
PEER = Peer(
    name="Triton, Python backend",
    requirements=("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime"),
    version_of="nvidia-pytriton",
    setups=(
        Setup("v2 binary", False, partial(_start, ensemble=False, mode=""), _all_clients),
        ENSEMBLE,
        Setup(
            "v2 binary, a thread each",
            True,
            partial(_start, ensemble=False, mode="threads"),
            lean(lambda work: V2Binary(_MODEL, work.input, ("scores",))),
        ),
    ),
    note="tritonserver 2.51 from the wheel nvidia-pytriton 0.7.0; its Python backend runs the ONNX files, which is not "
    "Triton's native path.",
)
