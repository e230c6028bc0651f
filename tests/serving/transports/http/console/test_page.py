"""The console in a real browser: it loads, shows what happens to workers, and can be used by keyboard and by ear."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.browser import Page, find_chromium, opened_browser

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
STATE = "document.querySelectorAll('#rows tr')[{}].dataset.state"
PRESS = "document.querySelector('[aria-label=\"{} worker {}\"]').click()"


@pytest.fixture(scope="module")
def served(run_server, tiny_bundle, make_bundle):
    numbers = make_bundle(name="wine", n_classes=3, shape=(4,), labels=("red", "white", "rosé"))
    with run_server(tiny_bundle, numbers, inference={"allow_faults": True}) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    assert CHROMIUM is not None
    with opened_browser(CHROMIUM) as page:
        yield page


@pytest.fixture
def page(served, browser: Page) -> Iterator[Page]:
    """The console of the model `tiny`, with all of its workers."""
    browser.resize(1280, 900)
    browser.open(f"{served.url}/?model=tiny")
    assert browser.until("document.querySelectorAll('#rows tr[data-state=live]').length === 10")
    assert browser.until("document.querySelectorAll('.sample').length === 8")
    yield browser
    assert browser.complaints() == []


def test_it_shows_the_bundle_and_its_guarantees(page: Page) -> None:
    text = page.evaluate("document.body.innerText")
    for expected in (
        "10 classes, 10 workers",
        "cyclic (0, 1, 3), redundancy 3",
        "tolerates the loss of any 2 of 10 workers",
        "ready, all 10 workers live",
        "class-9",
    ):
        assert expected in text


def test_a_killed_worker_is_shown_and_so_is_its_return(page: Page) -> None:
    page.evaluate(PRESS.format("Kill", 3))
    assert page.until(f"{STATE.format(3)} === 'dead'")
    assert page.until("document.querySelector('#status').innerText.startsWith('1 of 10 workers lost')")
    assert "worker 3: killed" in page.evaluate("document.querySelector('#history').innerText")
    assert page.evaluate("document.querySelector('[aria-label=\"Kill worker 3\"]').ariaPressed") == "true"
    left = page.evaluate("document.querySelectorAll('#left > span')[3].ariaLabel")
    assert left == "2 of 3 copies left of class-3"
    page.evaluate(PRESS.format("Kill", 3))
    assert page.until(f"{STATE.format(3)} === 'live'")
    assert page.until("document.querySelector('#status').innerText === 'ready, all 10 workers live'")


def test_a_class_without_a_copy_is_said(page: Page) -> None:
    for worker in (5, 7, 8):
        page.evaluate(PRESS.format("Kill", worker))
    assert page.until("document.querySelector('#status').innerText === 'no copy of class-8'")
    for worker in (5, 7, 8):
        page.evaluate(PRESS.format("Kill", worker))
    assert page.until("document.querySelector('#status').dataset.level === 'good'")


def test_a_sample_is_asked_about_and_its_votes_are_shown(page: Page, tiny_bundle: Path) -> None:
    expected = page.evaluate("document.querySelector('.sample').title")
    page.evaluate("document.querySelector('.sample').click()")
    assert page.until("document.querySelector('#workers').classList.contains('decided')")
    assert page.evaluate("document.querySelector('#label').innerText") == expected
    assert page.evaluate("document.querySelector('#labels .winner').innerText") == expected
    assert page.evaluate("document.querySelectorAll('.cells [data-vote=yes]').length") >= 2
    assert page.evaluate("document.querySelector('#tally').innerText") == "1 of 1"
    assert page.evaluate("document.querySelector('#picture').ariaLabel") == f"A sample of {expected}"
    assert page.evaluate("document.querySelector('#story').innerText").startswith("Decided after ")


def test_a_request_of_another_client_is_shown_with_what_is_missing(page: Page, served) -> None:
    page.evaluate(PRESS.format("Kill", 6))
    assert page.until(f"{STATE.format(6)} === 'dead'")
    picture = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture, "PNG")
    answer = httpx.post(f"{served.url}/v1/predict?model=tiny&wait=all", content=picture.getvalue()).json()
    assert page.until("document.querySelector('#workers').classList.contains('decided')")
    assert page.evaluate("document.querySelector('#label').innerText") == answer["label"]
    assert "missing: 6 (dead)" in page.evaluate("document.querySelector('#story').innerText")
    lost = "[...document.querySelectorAll('#rows tr')].map((row) => row.querySelectorAll('[data-vote=lost]').length)"
    assert page.evaluate(lost) == [0, 0, 0, 0, 0, 0, 3, 0, 0, 0]
    page.evaluate(PRESS.format("Kill", 6))
    assert page.until(f"{STATE.format(6)} === 'live'")


def test_a_picture_is_dropped_and_answered(page: Page) -> None:
    page.evaluate("""(async () => {
      const canvas = new OffscreenCanvas(20, 10);
      canvas.getContext("2d").fillRect(0, 0, 9, 9);
      const files = new DataTransfer();
      files.items.add(new File([await canvas.convertToBlob()], "dropped.png", { type: "image/png" }));
      dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
    })()""")
    assert page.until("document.querySelector('#label').innerText.startsWith('class-')")
    assert page.evaluate("document.querySelector('#picture').ariaLabel") == "The picture that was asked about"
    page.evaluate("""(() => {
      const files = new DataTransfer();
      files.items.add(new File(["no picture"], "dropped.png", { type: "image/png" }));
      dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
    })()""")
    assert page.until("document.querySelector('#ask-note').innerText !== ''")


def test_the_webcam_is_asked_about_until_it_is_switched_off(page: Page) -> None:
    page.evaluate("document.querySelector('#webcam').click()")
    assert page.until("document.querySelector('#picture').ariaLabel === 'The picture that was asked about'")
    page.evaluate("document.querySelector('#webcam').click()")
    assert page.evaluate("document.querySelector('#webcam').ariaPressed") == "false"
    assert page.evaluate("document.querySelector('#ask-note').innerText") == ""


def test_samples_are_sent_until_that_is_switched_off_and_latencies_are_drawn(page: Page) -> None:
    page.evaluate("document.querySelector('#steady').click()")
    assert page.until("parseInt(document.querySelector('#tally').innerText) >= 8")
    assert page.until("document.querySelector('#curves .p50')?.getAttribute('d').split('L').length > 3")
    assert page.until("document.querySelector('#per-s').innerText !== '0'")
    page.evaluate("document.querySelector('#steady').click()")
    assert page.evaluate("document.querySelector('#tally').dataset.level") == "good"
    assert page.evaluate("document.querySelector('#curves-text').textContent").startswith("p50 ")


def test_a_model_that_takes_numbers_is_asked_about_numbers(page: Page) -> None:
    page.evaluate("""(() => {
      document.querySelector('#model').value = 'wine';
      document.querySelector('#model').dispatchEvent(new Event('change'));
    })()""")
    assert page.until("document.querySelectorAll('#rows tr[data-state=live]').length === 3")
    assert page.until("!document.querySelector('#numbers').hidden")
    assert json.loads(page.evaluate("document.querySelector('#numbers-text').value")) == [0, 0, 0, 0]
    page.evaluate("document.querySelector('#numbers button').click()")
    assert page.until("['red', 'white', 'rosé'].includes(document.querySelector('#label').innerText)")
    assert page.evaluate("document.querySelector('#webcam').hidden")


def test_every_control_has_a_name_and_the_first_is_reached_by_tab(page: Page) -> None:
    assert page.nameless() == []
    page.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the workers"
    page.press("Enter")
    assert page.evaluate("document.activeElement.id") == "workers-panel"
    for _ in range(2):
        page.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Delay worker 0"


@pytest.mark.parametrize("width", [360, 800, 1280, 1600])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.resize(width, 900)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # The table has a scroll bar of its own for many classes; ten of them fit.
    assert (
        page.evaluate(
            "(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)(document.querySelector('.scroll'))"
        )
        <= 0
    )


def test_it_is_light_or_dark_as_the_reader_prefers_or_says(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.prefer("light")
    light = page.evaluate(ground)
    page.prefer("dark")
    dark = page.evaluate(ground)
    assert light != dark
    page.evaluate("document.querySelector('#theme').click()")
    assert page.evaluate(ground) == light
    page.reload()
    assert page.until("document.querySelector('#theme')?.innerText === 'Light'")  # it is remembered
    page.evaluate("document.querySelector('#theme').click()")
    page.prefer("light")
    assert page.evaluate(ground) == dark
    page.evaluate("document.querySelector('#theme').click()")
    assert page.evaluate("document.querySelector('#theme').ariaLabel") == "Theme: Auto"
