"""A bundle's tokenizer as a model of Triton's Python backend: copied as it is into a model repository, run by Triton alone.

What makes tokens is the code that sensai-serve runs itself: the folder ``sensai_serve`` beside this file holds the few
modules of it, which need numpy and the library `tokenizers`. Where the Python that the backend embeds does not find
these by itself, a file ``site_packages`` beside this one names their folder. Triton 2.51 needs numpy < 2 there.
"""  # noqa: E501
# mypy: ignore-errors

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
if (FOLDER / "site_packages").is_file():  # now, and first: the backend itself imports numpy right after this module
    sys.path.insert(0, (FOLDER / "site_packages").read_text().strip())
sys.path.insert(0, str(FOLDER))  # before an installed sensai-serve, which may be another version

import triton_python_backend_utils as pb_utils  # noqa: E402

from sensai_serve.errors import RequestError, UnsupportedError  # noqa: E402
from sensai_serve.input_spec import InputSpec  # noqa: E402
from sensai_serve.tensors import arrays_of  # noqa: E402
from sensai_serve.text_spec import TOKENIZER, TokenizerSpec  # noqa: E402
from sensai_serve.tokenizer import Texts, TextTokenizer, decoded_texts  # noqa: E402

MISSING = "texts need the package tokenizers, which Triton's Python does not have, expected pip install tokenizers"


class TritonPythonModel:
    """The tokenizer in ``tokenizer.json`` beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer; without its library, all texts are refused and Triton still starts, for the workers."""
        described = json.loads((FOLDER / "texts.json").read_text())
        self._spec = TokenizerSpec.from_json(described["tokenizer"])
        self._made = [InputSpec.from_json(one) for one in described["inputs"]]
        try:
            self._tokenizer = TextTokenizer((FOLDER / TOKENIZER).read_bytes(), self._spec, self._made)
        except UnsupportedError:
            self._tokenizer = None
            pb_utils.Logger.log_error(f"{args['model_name']}: {MISSING}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """The tokens of each request's texts, or one line that says what is wrong with them."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        if request.is_cancelled():
            return _refused("the caller has gone", "CANCELLED")
        if self._tokenizer is None:
            return _refused(MISSING, "UNSUPPORTED")
        given = pb_utils.get_input_tensor_by_name(request, self._spec.name).as_numpy()
        try:
            made = self._tokenizer.inputs(Texts(decoded_texts(given.reshape(-1), self._spec), {}))
        except RequestError as error:
            return _refused(str(error), "INVALID_ARG")
        tensors = [pb_utils.Tensor(name, array) for name, array in arrays_of(made, self._made).items()]
        return pb_utils.InferenceResponse(tensors)


def _refused(why: str, code: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(why, getattr(pb_utils.TritonError, code)))
