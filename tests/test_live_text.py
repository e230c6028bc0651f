"""The example of live text: pages become lines without markup, and a network learns which language they are in."""

from __future__ import annotations

import gzip
import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

import sensai_serve
from pruning.data import load

EXAMPLES = Path(__file__).parents[1] / "examples"
SAID = {
    "cs": ["Otevři zadaný soubor", "vypíše seznam adresářů",
           "pokud není uvedeno jinak", "uloží výsledek na disk"],
    "da": ["Åbn den angivne fil", "viser en liste over mapper",
           "hvis ikke andet er angivet", "gemmer det på disken"],
    "de": ["Öffnet die genannte Datei", "zeigt alle Verzeichnisse",
           "falls nichts anderes gilt", "schreibt auf die Platte"],
    "en": ["Opens the file that is named", "shows every directory",
           "unless something else is given", "writes to the disk"],
    "es": ["Abre el archivo que se indica", "muestra los directorios",
           "si no se dice otra cosa", "lo guarda en el disco"],
    "fi": ["Avaa annetun tiedoston", "näyttää kaikki hakemistot",
           "ellei toisin ole mainittu", "tallentaa sen levylle"],
    "fr": ["Ouvre le fichier indiqué", "affiche tous les répertoires",
           "sauf indication contraire", "écrit sur le disque"],
    "it": ["Apre il file che è indicato", "mostra tutte le cartelle",
           "se non è detto altro", "lo scrive sul disco fisso"],
    "nl": ["Opent het genoemde bestand", "toont alle mappen hier",
           "tenzij iets anders gegeven is", "schrijft het naar schijf"],
    "pl": ["Otwiera podany plik tekstowy", "wyświetla wszystkie katalogi",
           "jeśli nie podano inaczej", "zapisuje na dysku"],
}  # fmt: skip


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example as a command imports it, forgotten afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield importlib.import_module("live_text")
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def pages(example: ModuleType) -> ModuleType:
    """What the example reads pages with."""
    return importlib.import_module("manual_pages")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder of pages: every two of a language's sentences are a line, and a page for each first one."""
    for label, said in SAID.items():
        folder = tmp_path / "share/man" / ("" if label == "en" else label) / "man1"
        folder.mkdir(parents=True)
        for page, first in enumerate([*said, *(sentence.upper() for sentence in said)]):
            lines = [f"\\fB{first}\\fR \\- {other}" for other in said]
            source = "\n".join(['.TH X 1 "a title that is no line"', ".SH NAME", *lines, ".nf", "code " * 9, ".fi"])
            (folder / f"page{page}.1.gz").write_bytes(gzip.compress(source.encode()))
    return tmp_path / "share"


def test_roff_becomes_lines(pages: ModuleType, tmp_path: Path) -> None:
    source = r"\fBna\(:ive\fP \*(lqca\[u0301]f\['e]\*(rq\-like\& \s-1X\s0 \e \" a comment"
    assert pages.plain(source) == "naïve cáfé-like X \\ "
    page = tmp_path / "x.1"
    text = "Running text that is long enough to be kept."
    left_out = f'.nf\n{text} Not this.\n.fi\n.\\" {text}\n  {text}\n--all=NAME, -a, --b=/etc/x/y/z/1/2/3/4/5/6'
    page.write_text(f".TH X 1\n{text}\n{left_out}\n{text} Twice.\n")
    assert list(pages.prose(page)) == [text, f"{text} Twice."]
    page.write_bytes(b"\xff" + text.encode())
    assert list(pages.prose(page)) == []


def test_pages_are_of_one_part_in_all_languages(pages: ModuleType, written: Path) -> None:
    lines = pages.lines(written)
    assert {line.label for line in lines} == set(SAID)
    assert {line.test for line in lines} == {False, True}
    parts = {(line.text.partition(" - ")[0], line.label): line.test for line in lines}
    for n in range(4):
        assert len({parts[said[n], label] for label, said in SAID.items()}) == 1
    assert not any("code" in line.text or "title" in line.text for line in lines)
    assert all(len(list(group)) == 1 for _, group in itertools.groupby(sorted(line.text for line in lines)))


def test_a_network_learns_languages_from_lines(example: ModuleType, written: Path, tmp_path: Path) -> None:
    example.write(tmp_path, written, 12)
    source = example.source_of(tmp_path)
    example.train(source, "transformer", tmp_path / "w.safetensors", epochs=5, batch=16)
    dataset, network = load(source), example.Transformer(len(SAID))
    assert dataset.labels == tuple(SAID)
    assert dataset.tokenizer is not None
    network.load_state_dict(load_file(tmp_path / "w.safetensors"))
    with torch.no_grad():
        right = network(torch.from_numpy(dataset.x_test).long()).argmax(1).numpy() == dataset.y_test
    assert right.mean() > 0.6


@pytest.mark.soak
def test_one_command_makes_a_bundle_that_takes_lines(example: ModuleType, written: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    example.main(["--out", str(out), "--pages", str(written), "--network", "transformer", "--quick"])
    assert (out / "figures.md").read_text().count("\n") == 3
    classifier = sensai_serve.load(out / "transformer-bundle")
    assert classifier.manifest.tokenizer is not None
    assert classifier.manifest.tokenizer.too_long == "cut"
    assert classifier.predict("Zeigt alle Verzeichnisse " * 40).label in SAID
