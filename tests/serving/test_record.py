"""`serve --record` keeps the inputs that workers disagree about, within its bound, and `sensai replay` shows them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import httpx
import numpy as np
import pytest

import sensai_serve
from sensai_serve.errors import DataError, InputError
from sensai_serve.preprocess import normalise
from sensai_serve.recording import Recorded, raw_inputs, recordings
from serving.telemetry.recorder import Recorder

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)


def ask(url: str, raw: np.ndarray, **query: str) -> dict:
    reply = httpx.post(f"{url}/v1/predict", params=query, json={"inputs": raw.tolist()}, headers={"x-request-id": "me"})
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.fixture
def kept(run_server, tiny_bundle, tmp_path) -> tuple[Path, list[dict]]:
    """A folder with recorded requests, and the answers to all of `PIXELS`."""
    folder = tmp_path / "kept"
    inference = {"faults": "3:drop", "wait": "all", "deadline_ms": 60_000}
    with run_server(tiny_bundle, record={"folder": folder}, inference=inference) as server:
        answers = [ask(server.url, pixels) for pixels in PIXELS]
    return folder, answers


def test_what_is_not_sure_is_kept_with_its_reason_and_nothing_else(kept, tiny_bundle, sensai):
    folder, answers = kept
    expected = [n for n, answer in enumerate(answers) if not (answer["elected"] and answer["complete"])]
    assert len(expected) > 0
    recorded = [Recorded.read(path) for path in recordings(folder)]
    assert len(recorded) == len(expected)
    spec = sensai_serve.load(tiny_bundle).manifest.input
    for one, number in zip(recorded, expected, strict=True):
        np.testing.assert_array_equal(one.inputs[0], normalise(PIXELS[number], spec))
        assert (one.answer["label"], one.answer["model"]) == (answers[number]["label"], "tiny")
        sure = {"incomplete": answers[number]["complete"], "unelected": answers[number]["elected"]}
        assert one.answer["why"] == [name for name, holds in sure.items() if not holds]
        assert "3" in one.answer["missing"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    code, out, _ = sensai("replay", folder, "--bundle", tiny_bundle, "--json", "--npz", folder / "again.npz")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    classifier = sensai_serve.load(tiny_bundle)
    assert [row["now"]["label"] for row in rows] == [classifier.predict(PIXELS[n]).label for n in expected]
    with np.load(folder / "again.npz", allow_pickle=False) as arrays:
        assert list(arrays["given"]) == [row["label"] for row in rows]
        if spec.image is not None:
            np.testing.assert_array_equal(arrays["x"], PIXELS[expected])
        else:
            np.testing.assert_allclose(arrays["x"], PIXELS[expected], rtol=1e-4, atol=1e-3)
    code, out, _ = sensai("replay", folder)
    assert code == 0
    assert "incomplete" in out or "unelected" in out


def test_below_a_margin_all_is_kept_and_off_nothing_is(run_server, tiny_bundle, tmp_path):
    with run_server(tiny_bundle, record={"folder": tmp_path / "all", "margin": 1.0}) as server:
        margins = [ask(server.url, pixels)["margin"] for pixels in PIXELS]
    found = [Recorded.read(path).answer for path in recordings(tmp_path / "all")]
    assert len(found) == sum(margin < 1 for margin in margins)
    assert all("margin" in answer["why"] for answer in found)


def test_the_oldest_make_room(run_server, tiny_bundle, tmp_path):
    one = len(Recorded(np.zeros((1, 3, 8, 8), np.float32), {"label": None}).to_bytes())
    folder = tmp_path / "few"
    for _ in range(2):  # the second server counts what the first has kept
        with run_server(tiny_bundle, record={"folder": folder, "margin": 1.0, "bytes": 20 * one}) as server:
            for pixels in PIXELS:
                ask(server.url, pixels)
        assert sum(path.stat().st_size for path in recordings(folder)) <= 20 * one
    spec = sensai_serve.load(tiny_bundle).manifest.input
    last = Recorded.read(recordings(folder)[-1])
    np.testing.assert_array_equal(last.inputs[0], normalise(PIXELS[-1], spec))


def test_pictures_come_back_as_they_were(make_bundle):
    spec = sensai_serve.load(make_bundle()).manifest.input
    given = [normalise(pixels, spec) for pixels in PIXELS]
    raw = raw_inputs(given, spec)
    np.testing.assert_allclose([normalise(each, spec) for each in raw], given, atol=1e-5)


def test_what_cannot_be_read_or_written_is_one_line(tmp_path, sensai):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot be written to"):
        Recorder(tmp_path / "file", 1, 0.0)
    for args, message in (
        ((tmp_path / "none",), "is no directory"),
        ((tmp_path,), "holds no recorded requests"),
        ((tmp_path, "--npz", "x.npz"), "--npz needs --bundle"),
    ):
        code, _, err = sensai("replay", *args)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    for content in (b"", b"PK\x03\x04 broken"):
        (tmp_path / "1-0.npz").write_bytes(content)
        with pytest.raises(DataError, match="is no recorded request"):
            Recorded.read(tmp_path / "1-0.npz")
