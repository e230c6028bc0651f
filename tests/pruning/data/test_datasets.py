"""Data sets of the library `datasets` from a folder, as its save_to_disk lays them out: texts, inputs, pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pruning import data
from sensai_serve.errors import DataError

pa = pytest.importorskip("pyarrow")
NAMES = ["neg", "pos"]


def save(folder: Path, columns: dict[str, Any], *, names: list[str] | None = NAMES, files: int = 1) -> Path:
    """What ``Dataset.save_to_disk`` writes: Arrow streams, what they are called, and what the columns are."""
    folder.mkdir(parents=True)
    table = pa.table(columns)
    listed = []
    for number in range(files):
        listed.append({"filename": f"data-{number:05}-of-{files:05}.arrow"})
        part = table.slice(number * len(table) // files, len(table) // files)
        with (
            pa.OSFile(str(folder / listed[-1]["filename"]), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(part)
    features = {name: {"dtype": "int64", "_type": "Value"} for name in columns}
    if names is not None:
        features["label"] = {"names": names, "_type": "ClassLabel"}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "state.json").write_text(json.dumps({"_data_files": listed, "_split": "train", "_indices_files": None}))
    return folder


def save_splits(folder: Path, splits: dict[str, dict[str, Any]]) -> Path:
    """What ``DatasetDict.save_to_disk`` writes."""
    for name, columns in splits.items():
        save(folder / name, columns)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def texts(count: int) -> dict[str, Any]:
    return {"text": [f"text {n}" for n in range(count)], "label": [n % 2 for n in range(count)]}


def test_texts_with_splits_and_the_order_of_their_classes(tmp_path, caplog):
    path = save_splits(tmp_path / "said", {"train": texts(8), "validation": texts(4)})
    dataset = data.load(f"datasets:{path}?length=10")
    assert (dataset.labels, len(dataset.x), len(dataset.x_test)) == (("neg", "pos"), 8, 4)
    assert bytes((dataset.x[3].astype(np.uint8) - 1)[:6]) == b"text 3"
    assert dataset.y.tolist() == [0, 1] * 4
    assert "train is the training part and validation is the test part" in caplog.text
    masked = data.load(f"datasets:{path}?text=text&inputs=ids,mask&length=10")
    assert [spec.name for spec in masked.inputs] == ["ids", "mask"]
    assert len(data.load(f"datasets:{path}?train_split=validation&test_split=").x) == 2
    backwards = save(tmp_path / "backwards", texts(10), names=["pos", "neg"])
    assert data.load(f"datasets:{backwards}").labels == ("pos", "neg")


def test_tokens_of_different_lengths_are_padded_and_files_joined(tmp_path):
    rows = [[1] * (1 + n % 5) for n in range(20)]
    columns = {"input_ids": [[n, *row] for n, row in enumerate(rows)], "attention_mask": [[1, *row] for row in rows]}
    columns |= {"label": [n % 2 for n in range(20)], "idx": list(range(20))}
    dataset = data.load(f"datasets:{save(tmp_path / 'tokens', columns, files=2)}")
    assert [(spec.name, spec.dtype, spec.shape) for spec in dataset.inputs] == [
        ("input_ids", "INT64", (6,)),
        ("attention_mask", "INT64", (6,)),
    ]
    made = dataset.prepared(dataset.x).arrays
    for ids, mask in zip(made["input_ids"], made["attention_mask"], strict=True):
        assert mask.tolist() == [1] * (2 + ids[0] % 5) + [0] * (4 - ids[0] % 5)
    cut = data.load(f"datasets:{tmp_path / 'tokens'}?inputs=input_ids,idx&length=3")
    assert [spec.shape for spec in cut.inputs] == [(3,), (1,)]


def test_pictures(tmp_path):
    pictures = []
    for n in range(10):
        file = io.BytesIO()
        Image.new("RGB", (20, 10), (n * 20, 0, 0)).save(file, "png")
        pictures.append({"bytes": file.getvalue(), "path": None})
    path = save(tmp_path / "seen", {"image": pictures, "label": [n % 2 for n in range(10)]})
    dataset = data.load(f"datasets:{path}?size=8")
    assert (dataset.spec.shape, len(dataset.x)) == ((3, 8, 8), 8)
    assert dataset.spec.image is not None
    assert set(dataset.x[:, 0, 0, 0].tolist()) <= {n * 20 for n in range(10)}


def test_lists_of_labels_are_sets(tmp_path):
    names = ["sad", "glad", "calm"]
    rows = [[0, 2], [], [1], [2]] * 3
    path = save(tmp_path / "felt", {"text": [f"text {n}" for n in range(12)], "labels": rows}, names=None)
    kinds = {"labels": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}}
    (path / "dataset_info.json").write_text(json.dumps({"features": kinds}))
    source = f"datasets:{path}?text=text&label=labels"
    dataset = data.load(source, task="multilabel")
    assert (dataset.labels, dataset.y.shape[1]) == (tuple(names), 3)
    assert dataset.y.sum() + dataset.y_test.sum() == 12
    (path / "dataset_info.json").write_text("{}")
    assert data.load(source, task="multilabel").labels == ("0", "1", "2")
    with pytest.raises(DataError, match="examples have several labels or none"):
        data.load(source)


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        (lambda p: (p / "state.json").unlink(), "", "is no data set, expected a folder that save_to_disk"),
        (
            lambda p: (p / "data-00000-of-00001.arrow").write_bytes(b"?" * 99),
            "",
            "is damaged .*, expected what save_to",
        ),
        (lambda p: (p / "data-00000-of-00001.arrow").unlink(), "", "is damaged"),
        (lambda p: (p / "state.json").write_text('{"_indices_files": [1]}'), "", "picks rows out of others"),
        (lambda p: None, "?inputs=ids", "has no column 'ids', expected one of text, label"),
        (lambda p: None, "?inputs=text", "text holds no lists of numbers of one shape"),
        (lambda p: None, "?text=label", "column 'label' holds 0, expected texts"),
        (lambda p: None, "?image=text", "row 0 of 'text' holds no picture"),
        (lambda p: None, "?image=text&inputs=ids", "inputs and image are given, expected one of them"),
        (lambda p: None, "?train_split=test", "is one data set without splits"),
        (lambda p: None, "?length=0", "length is '0', expected 1 to"),
        (lambda p: None, "?column=text", "unknown option 'column'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, change, options, line):
    change(save(tmp_path / "said", texts(6)))
    with pytest.raises(DataError, match=line) as told:
        data.load(f"datasets:{tmp_path / 'said'}{options}")
    assert "\n" not in str(told.value)


def test_the_library_itself_writes_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    part = datasets.Dataset.from_dict(texts(12), features=kinds)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "said")
    dataset = data.load(f"datasets:{tmp_path / 'said'}")
    assert (dataset.labels, len(dataset.x), len(dataset.x_test)) == (("neg", "pos"), 12, 12)
