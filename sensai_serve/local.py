"""Runs a bundle in this process, for scripts, notebooks and offline evaluation: ``load(bundle).predict(x)``.

The same files, the same preprocessing and the same merge as the server, without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sensai_serve.anonymous_file import openable
from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, RequestError, WorkerError, first_line
from sensai_serve.examples import file_path
from sensai_serve.input_spec import InputSpec, Normalisation
from sensai_serve.manifest import Manifest
from sensai_serve.merge import Answer, Collector, Wait
from sensai_serve.preprocess import from_image, from_raw
from sensai_serve.tensors import Inputs, NamedInputs, arrays_of, check_batch
from sensai_serve.text_spec import TokenizerSpec
from sensai_serve.tokenizer import Texts, TextTokenizer, decoded

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one input."""

    label: str
    """Label of the class that won."""
    class_id: int
    """Its index in the bundle's labels."""
    scores: dict[str, float]
    """Merged score of each label, as the bundle's merge rule makes it of its copies."""
    votes: dict[str, int]
    """For each label the number of copies whose score is at least the threshold."""
    margin: float
    """Best score minus second best."""
    elected: bool
    """Whether more than half of the copies of the label's class voted for it."""


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """One of the labels of an input."""

    label: str
    class_id: int
    """Its index in the bundle's labels."""
    score: float
    """Its merged score."""


@dataclass(frozen=True, slots=True)
class LabelsPrediction:
    """The answer to one input that may have several labels at once."""

    labels: tuple[ScoredLabel, ...]
    """The labels that carry, the highest score first."""
    scores: dict[str, float]
    """Merged score of each label, as the bundle's merge rule makes it of its copies."""
    votes: dict[str, int]
    """For each label the number of copies whose score is at least its threshold."""
    margin: float
    """The smallest distance of a score from its label's threshold."""
    undecided: tuple[str, ...]
    """The labels that copies without a usable score could have changed."""


class Classifier:
    """The subnets of a bundle as ONNX Runtime sessions on the CPU, one after the other. Made by `load`."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        """Check every file of the bundle and open its subnets.

        Args:
            bundle: what to open.
            threads: ONNX Runtime threads per subnet.

        Raises:
            BundleError: a file is missing, damaged, or no network that ONNX Runtime can run.
            PluginError: the bundle's merge rule is not there, or was not allowed.
        """
        import onnxruntime as ort

        self.manifest: Manifest = bundle.manifest
        self._bundle = bundle
        self.plan = bundle.merge_plan
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions: list[Any] = []
        for spec in bundle.manifest.subnets:
            try:
                with openable(bundle.subnet(spec.worker)) as network:
                    session = ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
            except BundleError:
                raise
            except Exception as error:  # onnxruntime's exceptions share no base of its own
                raise BundleError(f"{bundle.path}: {spec.file} cannot be run: {first_line(error)}") from None
            self._sessions.append(session)

    def scores(self, inputs: Inputs) -> list[npt.NDArray[np.float32]]:
        """Every worker's scores.

        Args:
            inputs: FP32 [N, *shape], normalised, or of the input's own datatype; `NamedInputs` where there are several.

        Returns:
            For each worker FP32 [N, k], k the number of classes it covers.
        """
        feed = arrays_of(inputs, self.manifest.inputs)
        return [session.run(["scores"], feed)[0] for session in self._sessions]

    def predict_tensor(self, inputs: Inputs, *, wait: Wait = "all") -> Answer:
        """Merge the workers' scores of inputs that are ready for the network.

        Args:
            inputs: FP32 [N, *shape], normalised, or of the input's own datatype; `NamedInputs` where there are several.
            wait: until when workers are asked, one after the other; as for the server.

        Raises:
            RequestError: another shape or datatype, or the wait is ``confident``, and the bundle has no thresholds for
                it.
        """
        inputs = inputs if isinstance(inputs, NamedInputs) else np.asarray(inputs)
        check_batch(inputs, self.manifest.inputs, max(1, len(inputs)))
        collector, feed = Collector(self.plan, len(inputs), wait), arrays_of(inputs, self.manifest.inputs)
        left = list(self.plan.order)
        while left and not collector.done:
            worker = collector.next_of(left)
            left.remove(worker)
            collector.add(worker, self._sessions[worker].run(["scores"], feed)[0])
        return collector.answer()

    def predict(
        self,
        x: npt.ArrayLike | Mapping[str, npt.ArrayLike] | bytes | str | Path | Image,
        *,
        normalised: bool = False,
        wait: Wait = "all",
    ) -> Prediction:
        """Classify one input. A bundle that gives sets of labels has `predict_labels` in its place.

        Args:
            x: an image (path, bytes of the file, or a Pillow image) where the model takes pictures; a text, or the path
                of a file with one in UTF-8, where its bundle has a tokenizer; else the raw numbers of one input, of the
                model's shape: pixels, readings, tokens. Where the model takes several tensors, the numbers of each by
                its name, and with a tokenizer the text as ``text``. `example:NAME` is a path too: it names a picture
                that comes with the package.
            normalised: `x` holds numbers that are ready for the network, as the prediction endpoint takes them.
            wait: as for `predict_tensor`.

        Raises:
            RequestError: another shape, no numbers, no readable image, a text that is empty, too long or not UTF-8, or
                a wait that the bundle has no thresholds for.
            UnsupportedError: a text, and the library `tokenizers` is not installed.
            DataError: no picture of that name comes with the package.
            WorkerError: every subnet's scores were NaN, infinite or out of range.
            BundleError: the bundle gives sets of labels.
        """
        if self.manifest.task != "single":
            raise BundleError(f"{self.manifest.name} gives sets of labels, expected predict_labels in place of predict")
        return self._name(self._answer(x, normalised=normalised, wait=wait))

    def predict_labels(
        self,
        x: npt.ArrayLike | Mapping[str, npt.ArrayLike] | bytes | str | Path | Image,
        *,
        normalised: bool = False,
        wait: Wait = "all",
    ) -> LabelsPrediction:
        """Find the labels of one input, of a bundle that gives sets of them. Takes and raises what `predict` does.

        Raises:
            BundleError: the bundle gives one label.
        """
        if self.manifest.task == "single":
            raise BundleError(f"{self.manifest.name} gives one label, expected predict in place of predict_labels")
        answer, names = self._answer(x, normalised=normalised, wait=wait), self.manifest.labels
        scores = answer.scores[0].tolist()
        found = sorted(np.flatnonzero(answer.labels[0]).tolist(), key=lambda c: -scores[c])
        return LabelsPrediction(
            labels=tuple(ScoredLabel(names[c], c, scores[c]) for c in found),
            scores=dict(zip(names, scores, strict=True)),
            votes=dict(zip(names, answer.votes[0].tolist(), strict=True)),
            margin=float(answer.margin[0]),
            undecided=tuple(names[c] for c in answer.undecided),
        )

    def _answer(
        self,
        x: npt.ArrayLike | Mapping[str, npt.ArrayLike] | bytes | str | Path | Image,
        *,
        normalised: bool,
        wait: Wait,
    ) -> Answer:
        specs, texts = self.manifest.inputs, self.manifest.tokenizer
        if texts is not None and (isinstance(x, bytes | str | Path) or (isinstance(x, Mapping) and texts.name in x)):
            inputs = self._of_text(x, texts, normalised=normalised)
        elif isinstance(x, bytes | str | Path) or hasattr(x, "exif_transpose") or hasattr(x, "getexif"):
            if len(specs) > 1:
                raise RequestError(f"this model takes {', '.join(spec.name for spec in specs)}, not images")
            image = file_path(x) if isinstance(x, str | Path) else x
            inputs = from_image(image, specs[0])[None]  # type: ignore[arg-type]
        else:
            inputs = from_raw(x, _ready(specs) if normalised else specs)
        answer = self.predict_tensor(inputs, wait=wait)
        if answer.class_id[0] < 0:
            raise WorkerError("no subnet gave a usable score, expected numbers in [0, 1] from at least one")
        return answer

    @cached_property
    def _tokenizer(self) -> TextTokenizer | None:
        return self._bundle.text_tokenizer()

    def _of_text(self, x: Any, texts: TokenizerSpec, *, normalised: bool) -> Inputs:
        """The inputs that the tokenizer makes of a text, beside others that are given by name."""
        given = dict(x) if isinstance(x, Mapping) else {texts.name: x}
        text = given.pop(texts.name)
        if isinstance(text, Path):
            text = text.read_bytes()
        if isinstance(text, bytes):
            text = decoded(text, f"input {texts.name!r}", file=True)
        if not isinstance(text, str):
            raise RequestError(f"input {texts.name!r}: is {type(text).__name__}, expected a text")
        others, tokenizer = texts.others(self.manifest.inputs), self._tokenizer
        assert tokenizer is not None
        arrays = dict(arrays_of(from_raw(given, _ready(others) if normalised else others), others)) if others else {}
        if not others and given:
            raise RequestError(f"input {next(iter(given))!r} is unknown, expected {texts.name} alone")
        return tokenizer.inputs(Texts((text,), arrays))

    def _name(self, answer: Answer) -> Prediction:
        labels = self.manifest.labels
        class_id = int(answer.class_id[0])
        return Prediction(
            label=labels[class_id],
            class_id=class_id,
            scores=dict(zip(labels, answer.scores[0].tolist(), strict=True)),
            votes=dict(zip(labels, answer.votes[0].tolist(), strict=True)),
            margin=float(answer.margin[0]),
            elected=answer.elected,
        )


def _ready(specs: Sequence[InputSpec]) -> list[InputSpec]:
    """The inputs of numbers that are normalised already."""
    return [replace(spec, normalisation=Normalisation()) for spec in specs]


def load(bundle: str | Path | Bundle, *, threads: int = 1) -> Classifier:
    """Open a bundle for prediction in this process.

    Args:
        bundle: its directory, or `example:NAME` for one that comes with the package.
        threads: ONNX Runtime threads per subnet.

    Raises:
        BundleError: no bundle, or a damaged one.
    """
    return Classifier(bundle if isinstance(bundle, Bundle) else Bundle.open(bundle), threads=threads)
