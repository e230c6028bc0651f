"""Folders of WAV files: every kind of sample becomes the same numbers, of one length; another rate is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from pruning import data
from pruning.data.wav import read_sound
from sensai_serve.errors import DataError

RATE = 800
TONE = np.sin(np.arange(200) / 10).astype(np.float32) * 0.5


def written(folder: Path, rates=(RATE, RATE)) -> Path:
    for label, rate in zip(("high", "low"), rates, strict=True):
        (folder / label).mkdir(parents=True)
        for n in range(5):
            sound = (TONE[: 150 + 10 * n] * (1 if label == "low" else -1) * 32767).astype(np.int16)
            wavfile.write(folder / label / f"{n}.wav", rate, sound)
    return folder


@pytest.mark.parametrize(
    "samples",
    [
        TONE,
        TONE.astype(np.float64),
        (TONE * 32768).astype(np.int16),
        (TONE * 2.0**31).astype(np.int32),
        np.round(TONE * 128 + 128).astype(np.uint8),
        np.stack([TONE * 2, TONE * 0], axis=1),
    ],
)
def test_every_kind_of_sample_is_read_as_the_same_sound(tmp_path, samples):
    wavfile.write(tmp_path / "a.wav", RATE, samples)
    rate, sound = read_sound(tmp_path / "a.wav")
    assert (rate, sound.dtype) == (RATE, np.float32)
    np.testing.assert_allclose(sound, TONE, atol=0.005)


def test_sounds_are_as_long_as_the_longest_or_as_asked_and_may_be_moved(tmp_path, caplog):
    dataset = data.load(f"wav:{written(tmp_path / 'notes')}")
    assert (dataset.name, dataset.labels, dataset.spec.shape) == ("notes", ("high", "low"), (1, 190))
    assert (len(dataset.x), len(dataset.x_test)) == (8, 2)
    assert dataset.augmentation.shift == 9
    assert "0.237 s at 800 a second" in caplog.text
    short = data.load(f"wav:{tmp_path / 'notes'}?seconds=0.1&shift=0")
    assert (short.spec.shape, short.augmentation.shift) == ((1, 80), 0)
    assert not (short.x == 0).all(axis=2).any()


def test_train_and_test_folders(tmp_path):
    written(tmp_path / "d" / "train")
    written(tmp_path / "d" / "test")
    dataset = data.load(f"wav:{tmp_path / 'd'}")
    assert (len(dataset.x), len(dataset.x_test)) == (10, 10)


@pytest.mark.parametrize(
    ("options", "rates", "line"),
    [
        ("", (800, 900), r"low/0.wav: 900 samples a second, expected 800 as .*high/0.wav has: convert it first"),
        ("?rate=16000", (800, 800), "800 samples a second, expected 16000: convert"),
        ("?rate=fast", (800, 800), "rate is 'fast', expected 1 to 1e"),
        ("?seconds=100", (800, 800), "seconds is '100', expected 0.001 to 60"),
        ("?size=4", (800, 800), "unknown option 'size', expected rate, seconds, shift"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, options, rates, line):
    with pytest.raises(DataError, match=line) as caught:
        data.load(f"wav:{written(tmp_path / 'notes', rates)}{options}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damaged", [b"", b"RIFF", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"no sound at all"])
def test_a_damaged_file_is_named(tmp_path, damaged):
    written(tmp_path / "notes")
    (tmp_path / "notes" / "low" / "9.wav").write_bytes(damaged)
    with pytest.raises(DataError, match=r"9\.wav: cannot be read .*, expected a WAV file"):
        data.load(f"wav:{tmp_path / 'notes'}")


def test_a_class_without_sounds(tmp_path):
    written(tmp_path / "notes")
    (tmp_path / "notes" / "none").mkdir()
    with pytest.raises(DataError, match="class 'none' has no WAV files"):
        data.load(f"wav:{tmp_path / 'notes'}")
