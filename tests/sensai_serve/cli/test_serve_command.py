"""``sensai serve`` and ``sensai predict`` as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sensai_serve

READY = re.compile(r"ready: (http://127\.0\.0\.1:\d+)  tiny \(10 classes, 10 workers\)\n")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def start(tmp_path: Path):
    """Starts ``sensai serve`` as a process of its own; gives it and its URL once it is ready."""
    processes = []

    def run(*args: object, **environment: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-W", "error", "-m", "sensai_serve", "serve", *map(str, args)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        match = READY.fullmatch(line)
        assert match is not None, (line, process.stderr and process.stderr.read())
        return process, match[1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def ends_quietly(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal, and see a server end without an error or a word too many."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    said = [line for line in err.splitlines() if " INFO " not in line]  # where its workers run, say
    said = [line for line in said if "too slow to run inline" not in line]  # so may a busy machine make it
    assert (process.returncode, out, said) == (0, "", [])


def test_a_server_says_that_it_is_ready_answers_and_ends_quietly(start, sensai, tiny_bundle, picture) -> None:
    process, url = start(tiny_bundle, "--http", "127.0.0.1:0", "--device", "cpu")
    code, out, _ = sensai("predict", url, picture, "--json")
    assert (code, json.loads(out)["label"]) == (0, sensai_serve.load(tiny_bundle).predict(picture).label)
    ends_quietly(process, signal.SIGTERM)


def test_settings_come_from_the_environment_and_from_flags(start, sensai, tiny_bundle: Path, picture: Path) -> None:
    flags = ("--abstain-unelected", "--abstain-margin", "1")
    _, out, _ = sensai("serve", "--show-settings", *flags)
    shown = {words[0]: words[1:3] for line in out.splitlines() if len(words := line.replace("│", " ").split()) > 2}
    assert shown["inference.abstain_unelected"] == ["true", "flag"]
    assert shown["inference.abstain_margin"] == ["1.0", "flag"]
    environment = {"SENSAI_HTTP": "127.0.0.1:0", "SENSAI_INFERENCE__DEVICES": "cpu"}
    process, url = start("--repository", tiny_bundle.parent, *flags, **environment)
    _, out, _ = sensai("predict", url, picture, "--json")
    assert (json.loads(out)["label"], json.loads(out)["class_id"]) == (None, -1)
    ends_quietly(process, signal.SIGINT)


def test_settings_are_shown_with_their_origin(sensai, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSAI_LIMITS__BATCH", "7")
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = sensai("serve", "--show-settings", "--wait", "all")
    lines = {line.split()[1]: line for line in out.splitlines() if len(line.split()) > 2}
    assert code == 0
    assert [
        tuple(lines[name].replace("│", " ").split()[1:3]) for name in ("limits.batch", "inference.wait", "drain_s")
    ] == [("7", "environment"), ("all", "flag"), ("10.0", "default")]


@pytest.mark.parametrize("args", [["--version"], ["serve", "--show-settings"]])
def test_a_reader_that_leaves_ends_the_command_quietly(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "sensai_serve", *args], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.parametrize("module", ["tritonclient", "grpc", "grpc_health", "grpc_reflection"])
def test_what_grpc_needs_is_an_extra_that_the_error_names(
    sensai, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, module: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("serving.transports.grpc")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = sensai("serve", tiny_bundle, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    expected = f"{module} is not installed, expected it for this command: pip install 'sensai-serve[grpc]'"
    assert (code, err) == (2, f"sensai: error: {expected}\n")


def test_what_serving_does_not_need_is_not_imported_until_the_server_is_ready(tiny_bundle: Path) -> None:
    """Large libraries, and those of other extras: importing any one would delay every start."""
    heavy = (
        "torch onnx sklearn scipy pandas matplotlib ray tritonclient grpc pygrpc_native tokenizers httpx hypothesis "
        "rich.console opentelemetry.sdk pruning export benchmarks serving.transports.grpc serving.node"
    )
    code = f"""import atexit, sys
from sensai_serve.cli.main import main
atexit.register(lambda: print("imported:", *(name for name in {heavy.split()} if name in sys.modules)))
main(["serve", {str(tiny_bundle)!r}, "--http", "127.0.0.1:0"])
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert READY.fullmatch(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "imported:\n"
    assert process.returncode == 0


def test_a_port_that_is_taken(sensai, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = sensai("serve", tiny_bundle, "--http", address)
    assert (code, err) == (2, f"sensai: error: cannot listen on {address}: Address already in use\n")


def broken_golden(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["checksums"] = {}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with np.load(bundle / "golden.npz") as arrays:
        changed = dict(arrays) | {"scores": 1 - arrays["scores"]}
    np.savez(bundle / "golden.npz", **changed)


def broken_subnet(bundle: Path) -> None:
    (bundle / "subnets/03.onnx").write_bytes(b"no network")


@pytest.mark.parametrize(
    ("damage", "message"), [(broken_golden, "golden sample"), (broken_subnet, "subnets/03.onnx has SHA-256")]
)
def test_a_damaged_bundle_is_never_ready(sensai, make_bundle, damage: Callable[[Path], None], message: str) -> None:
    bundle = make_bundle()
    damage(bundle)
    code, out, err = sensai("serve", bundle, "--http", "127.0.0.1:0")
    assert (code, out) == (2, "")
    assert message in err
    assert len([line for line in err.splitlines() if " INFO " not in line]) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to serve, expected directories of bundles or --repository"),
        (["nowhere"], "nowhere is not a bundle: no such directory"),
        (["--repository", "nowhere"], "nowhere is not a directory, expected one that holds bundles"),
        (["{bundle}", "--http", "8000"], "setting http: '8000' is no address, expected HOST:PORT"),
        (
            ["{bundle}", "--http", "127.0.0.1:70000"],
            "setting http: '127.0.0.1:70000' is no address, expected a port of at most 65535",
        ),
        (["{bundle}", "--http", "203.0.113.1:0"], "cannot listen on 203.0.113.1:0"),
        (["{bundle}", "--device", "gpu"], "device is 'gpu', expected cpu, cpu:CORE or cuda:CARD"),
        (["{bundle}", "--device", "cpu=lots"], "device is 'cpu=lots': size is 'lots', expected at least one byte"),
        (["{bundle}", "--device", "cpu:0=1KiB"], "no placement fits: workers 0-9 take "),
        (["{bundle}", "--worker", "*=cpu:0=1KiB"], "cpu:0 has 1KiB; expected at least "),
        (["{bundle}", "--worker", "*=grpc://a:1=1GiB"], "'grpc://a:1=1GiB' is no server, expected grpc"),
        (["{bundle}", "--wait", "forever"], "setting inference.wait: Input should be 'decided', 'confident', 'all'"),
        (["{bundle}", "--backend", "nothing"], "nothing is called 'nothing'"),
        (["{bundle}", "--on-missing", "shrug"], "setting inference.on_missing: Input should be 'refuse'"),
        (["{bundle}", "--max-in-flight", "0"], "setting limits.in_flight: Input should be greater than or equal to 1"),
        (["{bundle}", "--deadline-ms", "nan"], "setting inference.deadline_ms"),
        (["{bundle}", "{bundle}"], "another bundle is called 'tiny' too"),
    ],
)
def test_serve_with_wrong_arguments(sensai, tiny_bundle: Path, args: list[str], message: str) -> None:
    code, out, err = sensai("serve", "--http", "127.0.0.1:0", *(arg.format(bundle=tiny_bundle) for arg in args))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("sensai: error: ")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def numbers_bundle(make_bundle) -> Path:
    return make_bundle(name="numbers", n_classes=3, shape=(4,))


ROWS = [[0.1, 2.5, 3.0, -1.0], [1.0, 1.0, -2.0, 0.0]]


def written(path: Path, suffix: str) -> Path:
    file = path / f"rows{suffix}"
    match suffix:
        case ".npy":
            np.save(file, np.array(ROWS))
        case ".npz":
            np.savez(file, inputs=np.array(ROWS))
        case ".json":
            file.write_text(json.dumps({"inputs": ROWS}))
        case ".csv":
            file.write_text("a,b,c,d\n" + "".join(f"{','.join(map(str, row))}\n" for row in ROWS))
    return file


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".json", ".csv"])
@pytest.mark.parametrize("remote", [False, True])
def test_predict_numbers_from_files(
    sensai, run_server, numbers_bundle: Path, tmp_path: Path, suffix: str, remote: bool
) -> None:
    file = written(tmp_path, suffix)
    expected = [sensai_serve.load(numbers_bundle).predict(row).label for row in ROWS]
    with run_server(numbers_bundle) as server:
        code, out, _ = sensai("predict", server.url if remote else numbers_bundle, file, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, [line["label"] for line in lines]) == (0, expected)
    assert [line["input"] for line in lines] == [f"{file}[0]", f"{file}[1]"]
    assert all(set(line) >= {"scores", "votes", "margin", "elected", "milliseconds"} for line in lines)


def test_predict_prints_a_table(sensai, server, tiny_bundle: Path, picture: Path) -> None:
    label = sensai_serve.load(tiny_bundle).predict(picture).label
    for target in (tiny_bundle, server.url):
        code, out, _ = sensai("predict", target, picture)
        assert code == 0
        assert all(word in out for word in ("label", "score", "votes", "margin", label))


def test_predict_asks_for_the_model_where_there_are_several(
    sensai, run_server, tiny_bundle: Path, numbers_bundle: Path, tmp_path: Path
) -> None:
    file = written(tmp_path, ".json")
    with run_server(tiny_bundle, numbers_bundle) as server:
        code, _, err = sensai("predict", server.url, file)
        assert code == 2
        assert "serves tiny, numbers, expected --model with one of them" in err
        code, out, _ = sensai("predict", server.url, file, "--model", "numbers", "--json")
        assert (code, len(out.splitlines())) == (0, 2)


def test_predict_with_wrong_input(sensai, server, tiny_bundle: Path, numbers_bundle: Path, tmp_path: Path) -> None:
    def wrong(*args: object, code: int = 2) -> str:
        got, out, err = sensai("predict", *args, "--json")
        assert (got, out, err.count("\n")) == (code, "", 1), err
        return err

    text = tmp_path / "text.png"
    text.write_text("no image")
    short = tmp_path / "short.csv"
    short.write_text("1,2,3\n")
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("1,2,3,4\n1,2\n")
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{}]), allow_pickle=True)
    several = tmp_path / "several.npz"
    np.savez(several, x=[1.0, 2.0, 3.0, 4.0], y=[1])
    for target in (tiny_bundle, server.url):
        assert "text.png: image: not a known image format" in wrong(target, text)
        assert "nowhere.png: No such file" in wrong(target, tmp_path / "nowhere.png")
        assert "short.csv: shape is [1, 3], expected [3, 8, 8], or rows of 192 numbers" in wrong(target, short)
    assert "ragged.csv is damaged, expected a .csv file of numbers" in wrong(numbers_bundle, ragged)
    assert "pickled.npy is damaged, expected a .npy file of numbers" in wrong(numbers_bundle, pickled)
    assert "several.npz holds x, y, expected one array, or one that is called inputs" in wrong(numbers_bundle, several)
    assert "text.png: this model takes [4] numbers, not images" in wrong(numbers_bundle, text)
    assert "nowhere is not a bundle" in wrong("nowhere", text)
    assert "is not the URL of a server" in wrong("ftp://x", text)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "cannot be reached" in wrong(f"http://127.0.0.1:{port}", text, code=1)
