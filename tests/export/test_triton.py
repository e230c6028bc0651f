"""`sensai export --triton`: a model repository that Triton's own schema accepts, versions kept side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from sensai_serve.bundles import Bundle


def config_of(repository: Path, model: str):
    """The model's configuration, refused where Triton would refuse it: an unknown or a repeated field."""
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_model_for_each_worker_pinned_to_the_given_cards(sensai, tiny_bundle: Path, tmp_path: Path) -> None:
    devices = ("--device", "cuda:0", "--device", "cuda:3", "--device", "cuda:1")
    code, out, err = sensai("export", tiny_bundle, "--triton", tmp_path / "models", *devices)
    assert (code, err) == (0, "")
    assert "version 1 of 10 models, tiny-00 to tiny-09" in out
    bundle = Bundle.open(tiny_bundle)
    cards = {}
    for subnet in bundle.manifest.subnets:
        config = config_of(tmp_path / "models", f"tiny-{subnet.worker:02}")
        assert config.backend == "onnxruntime"
        assert (config.input[0].name, list(config.input[0].dims)) == ("input", [3, 8, 8])
        assert (config.output[0].name, list(config.output[0].dims)) == ("scores", [len(subnet.classes)])
        assert config.parameters["sha256:1"].string_value == subnet.sha256
        assert config.model_warmup[0].inputs["input"].zero_data
        assert not config.HasField("dynamic_batching")
        (group,) = config.instance_group
        assert group.kind == group.KIND_GPU
        cards[subnet.worker] = tuple(group.gpus)
        model = tmp_path / "models" / config.name / "1" / "model.onnx"
        assert model.read_bytes() == bundle.subnet(subnet.worker)
    assert set(cards.values()) == {(0,), (1,), (3,)}
    for workers in bundle.assignment.workers_of:
        assert len({cards[w] for w in workers}) >= 2  # no card holds every copy of a class


def test_another_bundle_of_the_same_name_is_the_next_version(sensai, make_bundle, tmp_path: Path) -> None:
    first, second, third = (make_bundle(seed=seed) for seed in range(3))
    for bundle in (first, first, second, third):
        assert sensai("export", bundle, "--triton", tmp_path)[0] == 0
    versions = sorted(path.name for path in (tmp_path / "tiny-04").iterdir())
    assert versions == ["1", "2", "3", "config.pbtxt"]
    config = config_of(tmp_path, "tiny-04")
    assert config.version_policy.latest.num_versions == 2
    kept = {key: value.string_value for key, value in config.parameters.items() if key.startswith("sha256:")}
    assert kept == {
        f"sha256:{version}": Bundle.open(bundle).manifest.subnets[4].sha256
        for version, bundle in ((2, second), (3, third))
    }


def test_the_python_variant_brings_its_model_file(sensai, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--triton-backend", "python", "--site-packages", "/opt/ort/site-packages")
    assert sensai("export", tiny_bundle, "--triton", tmp_path, *options)[0] == 0
    config = config_of(tmp_path, "tiny-00")
    assert config.backend == "python"
    assert (tmp_path / "tiny-00/1/site_packages").read_text() == "/opt/ort/site-packages\n"
    compile((tmp_path / "tiny-00/1/model.py").read_text(), "model.py", "exec")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("{bundle}",), "is a bundle already, expected --triton"),
        (("{bundle}", "--out", "b", "--triton", "t"), "is a bundle already, expected --triton"),
        (("nowhere", "--triton", "t"), "--out is missing"),
        (("{bundle}", "--triton", "t", "--device", "cpu:0"), "devices are cpu:0, expected different ones"),
        (("{bundle}", "--triton", "t", "--device", "cuda", "--device", "cuda:0"), "expected different ones"),
        (("{bundle}", "--triton", "t", "--device", "cuda:0=1GiB"), "device is cuda:0=1GiB, expected no budget"),
        (("{bundle}", "--triton", "t", "--triton-backend", "torch"), "Triton backend is 'torch', expected onnxruntime"),
        (("{bundle}", "--triton", "file"), "file is a file"),
        (("{bundle}", "--triton", "other"), "tiny-03 is a model of something else"),
    ],
)
def test_a_wrong_export_is_one_line_and_leaves_nothing(
    sensai, tiny_bundle: Path, tmp_path: Path, monkeypatch, args, message
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("other/tiny-03").mkdir(parents=True)
    Path("other/tiny-03/config.pbtxt").write_text('name: "tiny-03"\nbackend: "python"\n')
    before = sorted(tmp_path.rglob("*"))
    code, out, err = sensai("export", *(arg.format(bundle=tiny_bundle) for arg in args))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before
