"""Makes bundles of ONNX files from Python: ``sensai_serve.bundle(models=[...], labels=[...]).save(path)``."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from sensai_serve.bundles import Bundle, atomic_directory
from sensai_serve.local import Classifier, LabelsPrediction, Prediction, load

if TYPE_CHECKING:
    from PIL.Image import Image

    Source = str | Path | bytes | Any  # or an onnx.ModelProto; the core does not know onnx
    Model = Source | tuple[Source, Sequence[str | int]]


class MadeBundle:
    """A bundle that has no place yet: it can be tried at once, and saved. Made by `bundle`."""

    def __init__(self, directory: Path, made: Bundle) -> None:
        """Keep a bundle that lies in a directory of its own, which is removed with this object."""
        self._made = made
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)

    @property
    def manifest(self) -> Any:
        """What the bundle holds, a `sensai_serve.manifest.Manifest`: accuracy, labels, how inputs are normalised."""
        return self._made.manifest

    def predict(self, x: npt.ArrayLike | bytes | str | Path | Image, *, normalised: bool = False) -> Prediction:
        """Classify one input in this process, as `Classifier.predict` does."""
        return self._classifier.predict(x, normalised=normalised)

    def predict_labels(
        self, x: npt.ArrayLike | bytes | str | Path | Image, *, normalised: bool = False
    ) -> LabelsPrediction:
        """Find the labels of one input in this process, as `Classifier.predict_labels` does."""
        return self._classifier.predict_labels(x, normalised=normalised)

    def save(self, path: str | Path) -> Bundle:
        """Write the bundle to a new or empty directory, whole or not at all.

        Raises:
            OutputExistsError: `path` holds something already.
        """
        with atomic_directory(path) as folder:
            shutil.copytree(self._made.path, folder, dirs_exist_ok=True)
        return Bundle.open(path)

    @cached_property
    def _classifier(self) -> Classifier:
        return load(self._made)


def bundle(
    models: Iterable[Model],
    labels: Sequence[str] | None = None,
    *,
    data: str | tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    name: str | None = None,
    reference: Source | None = None,
    tokenizer: str | Path | bytes | None = None,
    **options: Any,
) -> MadeBundle:
    """Make a bundle of ONNX models that there are already, as ``sensai bundle`` does.

    Args:
        models: paths, bytes or ONNX models; each alone, or with the classes of its outputs: ``("cats.onnx", ["cat"])``.
        labels: of all classes; those of the data, or of a model that names its own, where None.
        data: labelled inputs: a data source such as ``folder:DIR``, or arrays x [N, ...], raw, and y [N].
        name: what a server calls the model; the first file's name where None.
        reference: a network for all classes that may answer where workers are lost.
        tokenizer: a ``tokenizer.json`` of the library `tokenizers`, or its path: texts may then be sent.
        options: those of ``sensai bundle``, by their names: ``replicas=3``, ``mean=(0.5,)``.

    Raises:
        InputError: a model cannot be taken, models disagree, or the labels, data or options do not fit.
    """
    from export.existing.assemble import make_bundle
    from export.existing.members import members_of
    from export.existing.options import make_options
    from export.existing.samples import data_of_arrays, load_data
    from export.existing.texts import read_tokenizer

    members, chosen = members_of(models), make_options(options)
    given = None if labels is None else tuple(labels)
    labelled = None
    if isinstance(data, str):
        labelled = load_data(data, given, chosen.seed, chosen.task)
    elif data is not None:
        labelled = data_of_arrays(*data, labels=given, task=chosen.task)
    directory = Path(tempfile.mkdtemp(prefix="sensai-bundle-"))
    try:
        made = make_bundle(
            members,
            directory / "bundle",
            labels=given,
            data=labelled,
            options=chosen,
            name=name,
            reference=None if reference is None else members_of([reference])[0],
            tokenizer=None if tokenizer is None else read_tokenizer(tokenizer),
        )
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return MadeBundle(directory, made)
