"""The models of a Triton repository that take texts: a bundle's tokenizer, and an ensemble of it and the workers.

The tokenizer runs in Triton's Python backend, with the very code that this server makes tokens with: `MODULES` are
copied beside it. They need numpy and the library `tokenizers` there, and no sensai-serve.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import sensai_serve
from export.triton.models import TritonModel, copy_code, entries, quoted, tensor
from export.triton.options import KEPT, TritonOptions
from sensai_serve.bundles import Bundle
from sensai_serve.input_spec import InputSpec
from sensai_serve.manifest import Manifest
from sensai_serve.remote_names import SCORES, ensemble_name, model_name, tokenizer_name
from sensai_serve.text_spec import TOKENIZER, TokenizerSpec

MODULES = ("errors", "images/formats", "input_spec", "tensors", "text_spec", "tokenizer")
"""Files of the core that make tokens of texts, and those that they import."""


def text_models(bundle: Bundle, options: TritonOptions) -> list[TritonModel]:
    """The tokenizer, and the ensemble that takes texts; none where the bundle has no tokenizer.

    Args:
        bundle: the bundle.
        options: options of how Triton runs them.
    """
    manifest, data = bundle.manifest, bundle.tokenizer()
    if (spec := manifest.tokenizer) is None or data is None:
        return []
    made = [one for one in manifest.inputs if one.name in spec.made]
    described = json.dumps({"tokenizer": spec.to_json(), "inputs": [one.to_json() for one in made]}, indent=2)
    sha256 = hashlib.sha256(hashlib.sha256(data).digest() + described.encode()).hexdigest()

    def write_tokenizer(folder: Path) -> None:
        copy_code("_tokenizer_model.py", folder, options)
        (folder / TOKENIZER).write_bytes(data)
        (folder / "texts.json").write_text(f"{described}\n")
        _copy_modules(folder)

    def tokenizer_config(version: int, parameters: Mapping[str, str]) -> str:
        return _tokenizer_config(manifest, spec, made, parameters, options)

    def write_ensemble(folder: Path) -> None:
        # Triton wants a folder for a version, and object stores keep none that is empty.
        (folder / "README").write_text("An ensemble has no files: its steps are in ../config.pbtxt.\n")

    def ensemble_config(version: int, parameters: Mapping[str, str]) -> str:
        return _ensemble_config(manifest, spec, version, parameters, options)

    return [
        TritonModel(tokenizer_name(manifest), sha256, write_tokenizer, tokenizer_config, KEPT),
        # Its steps are those of all its versions, and they name versions: only the newest says what it is.
        TritonModel(ensemble_name(manifest), sha256, write_ensemble, ensemble_config, 1),
    ]


def _copy_modules(folder: Path) -> None:
    core = Path(sensai_serve.__file__).parent
    for module in MODULES:
        copy = (folder / core.name / module).with_suffix(".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile((core / module).with_suffix(".py"), copy)
        copy.with_name("__init__.py").touch()


def _tokenizer_config(
    manifest: Manifest,
    spec: TokenizerSpec,
    made: list[InputSpec],
    parameters: Mapping[str, str],
    options: TritonOptions,
) -> str:
    outputs = ",\n".join(tensor(one.name, one.dtype, one.shape) for one in made)
    return f"""\
# The tokenizer of {manifest.name}: texts of at most {spec.maximum} tokens. Written by `sensai export --triton`.
name: {quoted(tokenizer_name(manifest))}
backend: "python"
max_batch_size: {options.max_batch}
input [
{tensor(spec.name, "BYTES", (1,))}
]
output [
{outputs}
]
instance_group [ {{ count: {options.instances} kind: KIND_CPU }} ]
version_policy {{ latest {{ num_versions: {KEPT} }} }}
{entries(parameters)}"""


def _ensemble_config(
    manifest: Manifest, spec: TokenizerSpec, version: int, parameters: Mapping[str, str], options: TritonOptions
) -> str:
    given = [tensor(spec.name, "BYTES", (1,))]
    given += [tensor(one.name, one.dtype, one.shape) for one in spec.others(manifest.inputs)]
    scores = {subnet.worker: f"{SCORES}-{subnet.worker:02}" for subnet in manifest.subnets}
    outputs = [tensor(scores[subnet.worker], "FP32", (len(subnet.classes),)) for subnet in manifest.subnets]
    steps = [
        _step(tokenizer_name(manifest), version, {spec.name: spec.name}, {name: name for name in spec.made}),
        *(
            _step(
                model_name(manifest, subnet.worker),
                version,
                {one.name: one.name for one in manifest.inputs},
                {SCORES: scores[subnet.worker]},
            )
            for subnet in manifest.subnets
        ),
    ]
    separated = ",\n"
    return f"""\
# {manifest.name} of texts: the tokenizer, then all workers; the scores of each. Written by `sensai export --triton`.
name: {quoted(ensemble_name(manifest))}
platform: "ensemble"
max_batch_size: {options.max_batch}
input [
{separated.join(given)}
]
output [
{separated.join(outputs)}
]
version_policy {{ latest {{ num_versions: 1 }} }}
ensemble_scheduling {{
  step [
{separated.join(steps)}
  ]
}}
{entries(parameters)}"""


def _step(model: str, version: int, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    """One step of an ensemble: a model's version, and the ensemble's tensor for each of the model's."""
    maps = [
        f"      {kind} {{ key: {quoted(own)} value: {quoted(ensemble)} }}\n"
        for kind, tensors in (("input_map", inputs), ("output_map", outputs))
        for own, ensemble in tensors.items()
    ]
    return f"    {{\n      model_name: {quoted(model)}\n      model_version: {version}\n{''.join(maps)}    }}"
