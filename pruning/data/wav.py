"""``wav:DIR``: a folder of WAV files per class, with or without train/ and test/ (or val/) above them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pruning.data import Augmentation, Dataset, Labels, existing, moments_of, split, take_options
from pruning.data._layout import find_layout
from pruning.data._tree import PassedOver, files_under
from pruning.notices import say
from sensai_serve.errors import DataError
from sensai_serve.preprocess import InputSpec

Sound = npt.NDArray[np.float32]
SUFFIXES = frozenset({".wav", ".wave"})
LONGEST = 60.0
"""Seconds of the longest sound that is taken."""


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the sounds under `argument` as [N, 1, samples], in [-1, 1], several channels as their mean.

    Options: ``rate`` (samples a second that all files must have; the first file's), ``seconds`` (longer sounds lose
    what is before and after their middle, shorter ones are followed by silence; as long as the longest), ``shift``
    (samples that training moves sounds by at most, a twentieth of their length).
    """
    take_options("wav", options, ("rate", "seconds", "shift"))
    root = existing(argument, "wav")
    rate = _number("rate", options.get("rate"), 1, 1_000_000)
    seconds = _number("seconds", options.get("seconds"), 1e-3, LONGEST)
    shift = _number("shift", options.get("shift"), 0, 1e9)
    passed = PassedOver()
    layout = find_layout(root, passed)
    sounds, y, found = _read_all(layout.training, layout.labels, passed, None if rate is None else int(rate))
    length = max(map(len, sounds)) if seconds is None else max(round(seconds * found), 1)
    if length > LONGEST * found:
        raise DataError(
            f"wav: the longest sound lasts {length / found:.0f} s, expected ?seconds= of at most {LONGEST:g}"
        )
    x = np.stack([_fitted(sound, length) for sound in sounds])[:, None]
    if layout.test is not None:
        others, y_test, _ = _read_all((layout.test,), layout.labels, passed, found)
        x_test = np.stack([_fitted(sound, length) for sound in others])[:, None]
    else:
        kept, held_out = split(y, 0.2, seed)
        x, y, x_test, y_test = x[kept], y[kept], x[held_out], y[held_out]
    if passed.counts:
        say(f"wav: {root}: left out: {passed}")
    say(f"wav: {root}: sounds of {length} samples, {length / found:.3g} s at {found} a second")
    spec = InputSpec(shape=(1, length), normalisation=moments_of(x, scale=1.0))
    moved = Augmentation(shift=length // 20 if shift is None else int(shift))
    return Dataset(root.resolve().name, layout.labels, spec, x, y, x_test, y_test, moved)


def _read_all(
    places: Sequence[Path], labels: Sequence[str], passed: PassedOver, rate: int | None
) -> tuple[list[Sound], Labels, int]:
    sounds: list[Sound] = []
    y: list[int] = []
    first: Path | None = None
    for index, label in enumerate(labels):
        files = [file for place in places for file in files_under(place / label, SUFFIXES, passed)]
        if not files and len(places):
            raise DataError(f"wav: class {label!r} has no WAV files in {places[0] / label}, expected at least one")
        for file in files:
            found, sound = read_sound(file)
            if rate is not None and found != rate:
                like = f" as {first} has" if first else ""
                raise DataError(f"{file}: {found} samples a second, expected {rate}{like}: convert it first")
            rate, first = found, first or file
            sounds.append(sound)
        y += [index] * len(files)
    assert rate is not None
    return sounds, np.asarray(y, np.int64), rate


def read_sound(file: Path) -> tuple[int, Sound]:
    """Samples a second of a WAV file, and its samples in [-1, 1], the mean of its channels.

    Raises:
        DataError: it is no WAV file, or holds no sound.
    """
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of chunks that are no sound
            rate, raw = wavfile.read(file)
    except Exception as error:  # the reader raises whatever it likes over damage
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: cannot be read ({reason or type(error).__name__}), expected a WAV file") from None
    if not raw.size:
        raise DataError(f"{file}: holds no sound, expected some samples")
    sound = raw.astype(np.float64)
    if raw.dtype.kind == "u":
        sound = sound / 128 - 1
    elif raw.dtype.kind == "i":
        sound = sound / (np.iinfo(raw.dtype).max + 1)
    mono = (sound if sound.ndim == 1 else sound.mean(axis=1)).astype(np.float32)
    if not np.isfinite(mono).all():
        raise DataError(f"{file}: holds NaN or infinity, expected finite samples")
    return int(rate), mono


def _fitted(sound: Sound, length: int) -> Sound:
    if len(sound) >= length:
        start = (len(sound) - length) // 2
        return sound[start : start + length]
    return np.pad(sound, (0, length - len(sound)))


def _number(name: str, text: str | None, lowest: float, highest: float) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not lowest <= value <= highest:
        raise DataError(f"wav: {name} is {text!r}, expected {lowest:g} to {highest:g}")
    return value
