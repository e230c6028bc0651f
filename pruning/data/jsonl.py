"""``jsonl:FILE``: texts and their labels, or lists of labels, a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.data import Dataset, existing, from_texts, take_options
from sensai_serve.errors import DataError

OPTIONS = ("text", "label", "tokens", "inputs", "length", "long", "test")


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the file `argument`.

    Options: ``text`` and ``label`` (the keys of both; text, label; an empty label for none), ``tokens`` (``bytes``, or
    the path of a tokenizer.json; bytes), ``inputs`` (of the network, with commas between: of tokens, their mask and
    their types; tokens), ``length`` (tokens of each text, longer ones are cut; 128), ``long`` (whether
    a server of the bundle refuses longer ones, or cuts them too; refuse), ``test`` (a file with the test part; without
    one a stratified fifth is held out).
    """
    take_options("jsonl", options, OPTIONS)
    path = existing(argument, "jsonl")
    keys = options.get("text", "text"), options.get("label", "label")
    texts, labels = _read(path, *keys)
    test = _read(existing(options["test"], "jsonl"), *keys) if "test" in options else None
    return from_texts(
        path.stem,
        texts,
        labels,
        test,
        tokens=options.get("tokens", "bytes"),
        length=options.get("length", "128"),
        too_long=options.get("long", "refuse"),
        inputs=options.get("inputs", "tokens").split(","),
        seed=seed,
    )


def _read(path: Path, text: str, label: str) -> tuple[list[str], list[Any] | None]:
    texts, labels = list[str](), list[Any]()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number} holds {type(row).__name__}, expected an object")
                for key, fits in ((text, _is_text), *([(label, _is_label)] if label else [])):
                    if not fits(row.get(key)):
                        has = f"{row[key]!r:.40}" if key in row else f"no {key!r}, only {', '.join(row)[:80]}"
                        raise DataError(
                            f"{path}: line {number} has {has}, expected a text, and a label or a list of labels, by "
                            f"{key!r}"
                        )
                if label and labels and isinstance(row[label], list) != isinstance(labels[0], list):
                    raise DataError(
                        f"{path}: line {number} has {row[label]!r:.40}, expected a "
                        f"{'list of labels' if isinstance(labels[0], list) else 'label'} as in the lines before"
                    )
                texts.append(row[text])
                labels.append(_named(row[label]) if label else None)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}), expected JSON lines in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: line {number} is no JSON ({error}), expected an object a line") from None
    if not texts:
        raise DataError(f"{path}: has no lines, expected an object with a text and a label in each")
    names = labels if len({type(value) for value in labels}) == 1 else list(map(str, labels))
    return texts, names if label else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_label(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_label(one) and not isinstance(one, list) for one in value)
    return isinstance(value, str | int) and not isinstance(value, bool)


def _named(label: Any) -> Any:
    return list(map(str, label)) if isinstance(label, list) else label
