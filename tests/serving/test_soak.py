"""What takes minutes (`make soak`): a hundred thousand requests, good, bad and abandoned, leave nothing behind."""

from __future__ import annotations

import json
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tritonclient.utils.shared_memory as shm
from http_framing import Reader, disagreement, pieces, stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak_figures import record
from text_fixtures import TEXT_KINDS, word_tokenizer

from benchmarks.soak import Length
from sensai_serve.errors import RequestError
from sensai_serve.preprocess import InputSpec
from sensai_serve.tokenizer import Texts, TextTokenizer
from serving.v2 import decode_request
from serving.v2.decode_named import NamedDecoder
from serving.v2.shared_memory import Regions

pytestmark = pytest.mark.soak

LENGTH = Length.from_environment()
REQUESTS = INPUTS = LENGTH.of(100_000)
SPEC = InputSpec(shape=(2, 3))
GOOD = b'{"id":"x","inputs":[{"name":"input","datatype":"FP32","shape":[1,2,3],"parameters":{"binary_data_size":24}}]}'


def test_mutated_requests_do_no_harm() -> None:
    outcomes: Counter[str] = Counter()
    regions = Regions(allowed=True, most=16)

    # No database: each run tries new inputs, and a failure is printed with how to reproduce it.
    @settings(max_examples=INPUTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cuts=st.lists(st.tuples(st.integers(0, 160), st.integers(0, 9), st.binary(max_size=6)), max_size=4),
           length=st.none() | st.integers(-2, 200))  # fmt: skip
    def decode(cuts: list[tuple[int, int, bytes]], length: int | None) -> None:
        body = GOOD + bytes(24)
        for at, size, patch in cuts:
            body = body[:at] + patch + body[at + size :]
        try:
            decode_request(body, length if length is not None else len(GOOD), SPEC, 4, regions)
            outcomes["accepted"] += 1
        except RequestError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1

    started = time.monotonic()
    decode()
    record("codec_fuzz.json", {"inputs": outcomes.total(), "seconds": round(time.monotonic() - started, 1), **outcomes})


def test_mutated_requests_of_texts_do_no_harm() -> None:
    """As above, for a model with a tokenizer, and through the tokenizer."""
    outcomes: Counter[str] = Counter()
    specs, spec = TEXT_KINDS["fixed"]
    decoder = NamedDecoder(specs, 4, Regions(allowed=True, most=16), spec)
    tokenizer = TextTokenizer(word_tokenizer(), spec, specs)
    text = "Guten Tag ü hello world".encode()
    tail = len(text).to_bytes(4, "little") + text
    head = (b'{"inputs":[{"name":"age","datatype":"FP32","shape":[1,2],"data":[1,2]},{"name":"text","datatype":"BYTES",'
            b'"shape":[1,1],"parameters":{"binary_data_size":%d}}]}' % len(tail))  # fmt: skip
    in_json = head[: head.index(b'"shape":[1,1]')] + b'"shape":[1],"data":["' + text + b'"]}]}'

    @settings(max_examples=INPUTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cuts=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9), st.binary(max_size=6)), max_size=4),
           binary=st.booleans())  # fmt: skip
    def decode(cuts: list[tuple[int, int, bytes]], binary: bool) -> None:
        body, length = (head + tail, len(head)) if binary else (in_json, None)
        for at, size, patch in cuts:
            body = body[:at] + patch + body[at + size :]
        try:
            found = decoder.decode(body, length).inputs
            assert isinstance(found, Texts)
            tokenizer.inputs(found)
            outcomes["accepted"] += 1
        except RequestError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1

    started = time.monotonic()
    decode()
    record("text_fuzz.json", {"inputs": outcomes.total(), "seconds": round(time.monotonic() - started, 1), **outcomes})
    assert outcomes.total() >= INPUTS


def test_requests_begin_and_end_where_h11_sees_it() -> None:
    reader, seed, started = Reader(), secrets.randbits(32), time.monotonic()
    for number in range(seed, seed + INPUTS):
        rng = random.Random(number)
        data = stream(rng)
        assert disagreement(reader, data, pieces(data, rng)) is None, f"seed {number}"
    reader.close()
    record(
        "framing_fuzz.json", {"streams": INPUTS, "seconds": round(time.monotonic() - started, 1), "first_seed": seed}
    )


def usage(process: subprocess.Popen[str]) -> dict[str, int]:
    """What the server holds: KiB of memory, threads, open files, sockets."""
    proc = Path(f"/proc/{process.pid}")
    status = (proc / "status").read_text()
    files = [str(file.readlink()) for file in (proc / "fd").iterdir() if file.is_symlink()]
    return {
        "memory_kib": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]),
        "threads": int(re.findall(r"Threads:\s+(\d+)", status)[0]),
        "files": len(files),
        "sockets": sum(file.startswith("socket:") for file in files),
    }


def requests(key: str) -> list[bytes]:
    """Good, bad, compressed and shared-memory requests."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8]}
    numbers = np.random.default_rng(0).normal(size=192).round(3).tolist()
    shared = {"shared_memory_region": "soak", "shared_memory_byte_size": 768}
    bodies = [
        (f"/v2/models/tiny/{path}", json.dumps(content))
        for path, content in (
            ("infer", {"inputs": [tensor | {"data": numbers}]}),
            ("infer", {"inputs": [tensor | {"parameters": shared}]}),
            ("infer", {"inputs": [tensor | {"shape": [3]}]}),
            ("infer", {}),
            ("config", None),
        )
    ]
    bodies.append(("/v2/systemsharedmemory/region/again/register", json.dumps({"key": key, "byte_size": 10})))
    bodies.append(("/v2/systemsharedmemory/region/again/unregister", ""))
    bodies.append(("/v2/systemsharedmemory/region/soak/register", json.dumps({"key": key, "byte_size": 768})))
    return [
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        for path, body in bodies
    ]


def converse(address: tuple[str, int], messages: list[bytes], count: int, rng: random.Random) -> None:
    """Send so many requests over connections of which some are broken off in the middle."""
    while count > 0:
        with socket.create_connection(address, timeout=60) as connection:
            file = connection.makefile("rb")
            for _ in range(rng.randint(1, 200)):
                message = rng.choice(messages)
                if rng.random() < 0.01:
                    connection.sendall(message[: rng.randrange(len(message))])
                    break
                connection.sendall(message)
                length = 0
                while (line := file.readline().lower().strip()) != b"":
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                file.read(length)
                count -= 1
            file.close()


def test_nothing_is_left_behind(tiny_bundle: Path) -> None:
    key = f"/sensai_soak_{uuid.uuid4().hex}"
    region = shm.create_shared_memory_region("soak", key, 768)
    command = [sys.executable, "-m", "sensai_serve", "serve", str(tiny_bundle), "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        host, port = process.stdout.readline().split()[1].removeprefix("http://").split(":")
        messages, rng = requests(key), random.Random(0)
        address, forget = (host, int(port)), messages[-2:-1]
        converse(address, messages, REQUESTS // 10, rng)  # caches fill, pools grow
        converse(address, forget, 1, rng)
        before, started = usage(process), time.monotonic()
        converse(address, messages, REQUESTS, rng)
        converse(address, forget, 1, rng)
        seconds, after = time.monotonic() - started, usage(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
        shm.destroy_shared_memory_region(region)
    record("soak.json", {"requests": REQUESTS, "seconds": round(seconds, 1), "before": before, "after": after})
    assert after["threads"] <= before["threads"]
    assert after["sockets"] <= before["sockets"] + 1
    assert after["files"] <= before["files"] + 1
    assert after["memory_kib"] <= before["memory_kib"] * 1.05 + 2048
