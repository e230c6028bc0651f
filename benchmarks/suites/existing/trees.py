"""Trains a random forest and gradient-boosted trees on a table of scikit-learn's, and writes both as ONNX."""
# mypy: ignore-errors

import sys
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import train_test_split

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
table = load_breast_cancer()
x, x_test, y, y_test = train_test_split(
    table.data.astype(np.float32), table.target, test_size=0.5, random_state=seed, stratify=table.target
)
members = {
    "forest": RandomForestClassifier(100, random_state=seed),
    "boosted": GradientBoostingClassifier(random_state=seed),
}
for name, classifier in members.items():
    classifier.fit(x, y)
    (folder / f"{name}.onnx").write_bytes(to_onnx(classifier, x[:1]).SerializeToString())
np.savez(folder / "table.npz", x=x, y=y, x_test=x_test, y_test=y_test, labels=table.target_names)
