"""`sensai export --triton` of bundles with a tokenizer: Triton makes of texts what this server makes of them."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.http as triton_http
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_fixtures import TEXT_KINDS, WORDS, word_tokenizer
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from export.triton import TritonOptions, write_repository
from export.triton.texts import MODULES
from sensai_serve.bundles import Bundle, sha256_of
from sensai_serve.errors import OutputExistsError, RequestError
from sensai_serve.tensors import arrays_of
from sensai_serve.tokenizer import Texts, decoded_texts

PYTHON_BACKEND = '''
"""Stands for what Triton's Python backend offers to a model."""
import numpy as np

class TritonError:
    UNSUPPORTED, INVALID_ARG, CANCELLED = "UNSUPPORTED", "INVALID_ARG", "CANCELLED"
    def __init__(self, message, code):
        self.said = [code, message]

class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self.tensors, self.error = output_tensors, error

class Tensor:
    def __init__(self, name, array):
        self.name, self._array = name, array
    def as_numpy(self):
        return self._array

class Logger:
    def log_error(line):
        pass

def get_input_tensor_by_name(request, name):
    return Tensor(name, request.arrays[name])
'''
RUN = """
import json, sys
folder, without = sys.argv[1], sys.argv[2:]
sys.modules.update(dict.fromkeys(without))
sys.path.insert(0, sys.argv[1] + "/..")
import importlib.util
import numpy as np
spec = importlib.util.spec_from_file_location("model", folder + "/model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
model = module.TritonPythonModel()
model.initialize({"model_name": "tokenizer"})

class Request:
    def __init__(self, texts):
        self.arrays = {"text": np.array([bytes.fromhex(text) for text in texts], np.object_).reshape(-1, 1)}
    def is_cancelled(self):
        return not len(self.arrays["text"])

for line in sys.stdin:
    (reply,) = model.execute([Request(json.loads(line))])
    made = {one.name: [str(one.as_numpy().dtype), one.as_numpy().tolist()] for one in reply.tensors}
    print(json.dumps(reply.error.said if reply.error else made), flush=True)
assert sys.modules["sensai_serve"].__file__.startswith(folder), "not the copy"
"""

Ask = Callable[[list[bytes]], Any]


def config_of(repository: Path, model: str) -> Any:
    """The model's configuration, refused where Triton would refuse it."""
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def written(bundle: Path, out: Path, **options: Any) -> Path:
    opened = Bundle.open(bundle)
    write_repository(opened, out, [None] * len(opened.manifest.subnets), TritonOptions(**options))
    return out


@pytest.fixture(scope="module")
def models(text_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the bundles of texts, and beside it what stands for Triton's part of the Python backend."""
    out = tmp_path_factory.mktemp("models")
    for kind, bundle in text_bundles.items():
        written(bundle, out)
        (out / f"{kind}-tokenizer/triton_python_backend_utils.py").write_text(PYTHON_BACKEND)
    return out


@pytest.fixture(scope="module")
def ask(models: Path) -> Iterator[Callable[..., Any]]:
    """Gives texts to the model of a kind of bundle, in a process where nothing of this project is on the path."""
    running: dict[tuple[str, ...], subprocess.Popen[str]] = {}

    def answer(kind: str, texts: list[bytes], *without: str) -> Any:
        if (kind, *without) not in running:
            command = [sys.executable, "-I", "-c", RUN, str(models / f"{kind}-tokenizer/1"), *without]
            running[kind, *without] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=models
            )
        process = running[kind, *without]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([text.hex() for text in texts]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield answer
    for process in running.values():
        process.communicate()
        assert process.returncode == 0


def own_answer(bundle: Path, kind: str, texts: list[bytes]) -> Any:
    """What this server makes of the same bytes, or says about them."""
    specs, spec = TEXT_KINDS[kind]
    tokenizer = Bundle.open(bundle).text_tokenizer()
    assert tokenizer is not None
    others = {one.name: np.zeros((len(texts), *one.shape), one.numpy) for one in spec.others(specs)}
    try:
        made = arrays_of(tokenizer.inputs(Texts(decoded_texts(texts, spec), others)), specs)
    except RequestError as error:
        return ["INVALID_ARG", str(error)]
    return {name: [str(made[name].dtype), made[name].tolist()] for name in spec.made}


words = st.lists(st.sampled_from([*WORDS[4:], "Other", "\n", "ß"]), max_size=14).map(" ".join)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.encode)
any_bytes = st.one_of(words.map(str.encode), any_text, st.binary(max_size=6))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(TEXT_KINDS)), texts=st.lists(any_bytes, min_size=1, max_size=3))
def test_the_model_makes_the_tokens_that_this_server_makes(ask, text_bundles, kind: str, texts: list[bytes]) -> None:
    assert ask(kind, texts) == own_answer(text_bundles[kind], kind, texts)


@pytest.mark.parametrize(
    ("kind", "texts", "said"),
    [
        ("text", [b""], "input 'text': is an empty text, expected at least one character"),
        ("text", [b"hello", b""], "input 'text', text 1: is an empty text, expected at least one character"),
        ("text", [b"a\xff"], "input 'text', text 0: byte 1 is not UTF-8, expected text in UTF-8"),
        ("text", [b"hello " * 11], "input 'text': has 13 tokens, expected at most 12"),
        ("text", [b"x" * 5000], "input 'text': has 5000 characters, expected at most 4096, and at most 12 tokens"),
        ("bare", [b"hello", b"hello tag"], "texts have 3 and 4 tokens, expected one length"),
    ],
)
def test_the_model_refuses_with_this_server_s_words(ask, kind: str, texts: list[bytes], said: str) -> None:
    code, message = ask(kind, texts)
    assert code == "INVALID_ARG"
    assert said in message


def test_without_the_library_triton_starts_and_texts_say_what_is_missing(ask) -> None:
    assert ask("text", [b"hello"], "tokenizers") == [
        "UNSUPPORTED",
        "texts need the package tokenizers, which Triton's Python does not have, expected pip install tokenizers",
    ]
    assert ask("text", [])[0] == "CANCELLED"


def test_an_ensemble_leads_from_texts_to_the_scores_of_every_worker(models: Path, text_bundles) -> None:
    manifest = Bundle.open(text_bundles["fixed"]).manifest
    config, tokenizer = config_of(models, "fixed-text"), config_of(models, "fixed-tokenizer")
    text, string = ("text", [1]), model_config_pb2.TYPE_STRING
    assert [(one.name, list(one.dims)) for one in config.input] == [text, ("age", [2])]
    assert [(one.name, list(one.dims)) for one in tokenizer.input] == [text]
    assert {config.input[0].data_type, tokenizer.input[0].data_type} == {string}
    assert [(one.name, list(one.dims)) for one in config.output] == [
        (f"scores-{subnet.worker:02}", [len(subnet.classes)]) for subnet in manifest.subnets
    ]
    first, *others = config.ensemble_scheduling.step
    assert (first.model_name, dict(first.input_map)) == ("fixed-tokenizer", {"text": "text"})
    assert dict(first.output_map) == {one.name: one.name for one in tokenizer.output} == {"tokens": "tokens"}
    assert [step.model_name for step in others] == [f"fixed-{subnet.worker:02}" for subnet in manifest.subnets]
    for worker, step in enumerate(others):
        taken = config_of(models, step.model_name)
        assert dict(step.input_map) == {one.name: one.name for one in taken.input}
        assert dict(step.output_map) == {"scores": f"scores-{worker:02}"}


def test_the_copied_code_is_also_read_by_the_python_of_older_tritons(models: Path) -> None:
    files = sorted((models / "text-tokenizer/1").rglob("*.py"))
    assert len(files) == len(MODULES) + 3  # the model, and an empty __init__.py in each of two folders
    for file in files:
        ast.parse(file.read_text(), str(file), feature_version=(3, 10))


@pytest.fixture
def changed(text_bundles: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """The bundle of texts with the same subnets, and another tokenizer or none."""

    def make(name: str, data: bytes | None = None, **spec: Any) -> Path:
        bundle = Path(shutil.copytree(text_bundles["text"], tmp_path / name))
        raw = json.loads((bundle / "manifest.json").read_text())
        if data is None and not spec:
            del raw["tokenizer"]
        else:
            (bundle / "tokenizer.json").write_bytes(data or word_tokenizer())
            raw["checksums"]["tokenizer.json"] = sha256_of(bundle / "tokenizer.json")
            raw["tokenizer"] |= spec
        (bundle / "manifest.json").write_text(json.dumps(raw))
        return bundle

    return make


def test_another_tokenizer_is_the_next_version(text_bundles, changed, tmp_path: Path) -> None:
    out = tmp_path / "models"
    versions = []
    same = text_bundles["text"]
    for bundle in (same, same, changed("other", word_tokenizer(normalizer=None)), changed("short", maximum=8)):
        written(bundle, out)
        versions.append([step.model_version for step in config_of(out, "text-text").ensemble_scheduling.step])
    assert versions == [[n] * 7 for n in (1, 1, 2, 3)]
    assert config_of(out, "text-tokenizer").version_policy.latest.num_versions == 2
    assert config_of(out, "text-text").version_policy.latest.num_versions == 1
    assert json.loads((out / "text-tokenizer/3/texts.json").read_text())["tokenizer"]["maximum"] == 8
    with pytest.raises(OutputExistsError, match="text-text takes texts, and this bundle has no tokenizer"):
        written(changed("none"), out)


def test_a_repository_from_before_its_models_of_texts_keeps_its_version(text_bundles, changed, tmp_path: Path) -> None:
    written(changed("none"), tmp_path / "models")
    assert not list((tmp_path / "models").glob("text-t*"))
    written(text_bundles["text"], tmp_path / "models")
    assert [path.name for path in (tmp_path / "models/text-03").iterdir() if path.is_dir()] == ["1"]
    assert (tmp_path / "models/text-tokenizer/1/tokenizer.json").is_file()


def test_a_real_triton_answers_texts(run_triton, triton_packages: Path, text_bundles, tmp_path: Path) -> None:
    """The scores of each worker are those of its subnet for the tokens that this server makes."""
    for kind in TEXT_KINDS:
        written(text_bundles[kind], tmp_path, backend="python", site_packages=str(triton_packages))
    said = ["Guten Tag", "hello ü other world"]

    def tensor(given: list[bytes]) -> Any:
        array = np.array(given, np.object_).reshape(-1, 1)
        return triton_http.InferInput("text", list(array.shape), "BYTES").set_data_from_numpy(array)

    with run_triton(tmp_path) as server, triton_http.InferenceServerClient(server.http) as client:
        age = np.array([[1, 2], [3, 4]], np.float32)
        ages = triton_http.InferInput("age", [2, 2], "FP32").set_data_from_numpy(age)
        for kind, others in (("text", {}), ("fixed", {"age": age})):
            bundle = Bundle.open(text_bundles[kind])
            tokenizer = bundle.text_tokenizer()
            assert tokenizer is not None
            inputs = tokenizer.inputs(Texts(tuple(said), others))
            answer = client.infer(f"{kind}-text", [tensor([t.encode() for t in said]), *([ages] if others else [])])
            for subnet in bundle.manifest.subnets:
                (scores,) = ort.InferenceSession(bundle.subnet(subnet.worker)).run(
                    ["scores"], dict(arrays_of(inputs, bundle.manifest.inputs))
                )
                np.testing.assert_allclose(answer.as_numpy(f"scores-{subnet.worker:02}"), scores, atol=1e-6)
        for data, message in (
            (b"", "input 'text': is an empty text, expected at least one character"),
            (b"a\xff", "input 'text', text 0: byte 1 is not UTF-8, expected text in UTF-8"),
            (b"hello " * 11, "input 'text': has 13 tokens, expected at most 12"),
        ):
            for model in ("text-tokenizer", "text-text"):
                with pytest.raises(InferenceServerException, match="expected") as caught:
                    client.infer(model, [tensor([data])])
                assert message in str(caught.value)
                assert caught.value.status() == "400"
