"""Makes docs/console-light.gif and docs/console-dark.gif: the console while workers are killed and made to lie.

A real server, its example bundle and the Chromium of this machine; `python docs/site/moving_picture.py` takes a minute
and wants a machine that does nothing else.
"""

from __future__ import annotations

import io
import itertools
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from benchmarks.harness import servers
from benchmarks.harness.browser import Page, find_chromium, opened_browser
from benchmarks.subjects import our_server
from sensai_serve.bundles import Bundle
from sensai_serve.local import load
from sensai_serve.merge import merge
from sensai_serve.preprocess import Floats

BUNDLE = "example:cifar10"
SIZE, SCALE = (1280, 950), 0.8
SECONDS = 15.0
EVERY_S = 0.125
WARM_UP_S = 6.0
COLOURS = 255
DRAWS = 50
DOCS = Path(__file__).resolve().parents[1]

_RING = """(() => {
  const place = document.querySelector('[aria-label="%s"]').getBoundingClientRect();
  const ring = document.createElement('div');
  Object.assign(ring.style, {
    position: 'fixed', left: `${place.x + place.width / 2 - 22}px`, top: `${place.y + place.height / 2 - 22}px`,
    width: '44px', height: '44px', borderRadius: '50%%', border: '3px solid #ef4444', zIndex: 9,
  });
  document.body.append(ring);
  setTimeout(() => ring.remove(), 900);
})()"""


def main() -> None:
    """Make both pictures."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium on this machine")
    port = servers.free_port()
    for scheme in ("light", "dark"):
        # Without patience: a machine that draws pictures meanwhile makes sound workers look like stragglers.
        spec = our_server.spec(BUNDLE, "--allow-faults", "--patience", "0", port=port)
        with servers.running(spec) as server, opened_browser(chromium) as page:
            frames = film(page, f"http://{server.host}:{server.port}/", scheme)
        target = DOCS / f"console-{scheme}.gif"
        save(frames, target)
        print(f"{target}: {len(frames)} frames, {target.stat().st_size / 1e6:.2f} MB")


def film(page: Page, url: str, scheme: Literal["light", "dark"]) -> list[tuple[float, Image.Image]]:
    """Open the page, break two workers and mend them; frames, and the second at which each was taken."""
    page.resize(*SIZE, scale=SCALE)
    page.prefer(scheme)
    page.open(url)
    page.until("document.querySelectorAll('.sample').length > 0")
    page.evaluate("document.querySelector('#steady').click()")
    time.sleep(WARM_UP_S)
    killed, liar = spare_workers()
    script = [
        (1.5, "Kill", killed),
        (5.0, "Lie", liar),
        (9.5, "Lie", liar),
        (11.0, "Kill", killed),
    ]  # a second press takes the fault away
    frames = []
    started = time.monotonic()
    for frame in itertools.count():
        now = time.monotonic() - started
        if now > SECONDS:
            return frames
        while script and script[0][0] <= now:
            _, fault, worker = script.pop(0)
            name = f"{fault} worker {worker}"
            page.evaluate(_RING % name)
            page.evaluate(f"document.querySelector('[aria-label=\"{name}\"]').click()")
        frames.append((now, Image.open(io.BytesIO(page.screenshot())).convert("RGB")))
        time.sleep(max(0.0, started + (frame + 1) * EVERY_S - time.monotonic()))
    raise AssertionError


def spare_workers() -> tuple[int, int]:
    """A worker to kill and a worker that may lie meanwhile, with which the golden samples are answered as without."""
    classifier = load(BUNDLE)
    golden = Bundle.open(Path(BUNDLE)).golden()
    scores, rows = classifier.scores(golden.inputs), classifier.plan.assignment.rows
    draw = np.random.default_rng(0)

    def wrong(killed: int, liar: int) -> int:
        count = 0
        for _ in range(DRAWS):
            given: list[Floats | None] = list(scores)
            given[killed], given[liar] = None, draw.random(scores[liar].shape, np.float32)
            count += int((merge(classifier.plan, given).class_id != golden.class_id).sum())
        return count

    disjoint = [
        pair for pair in itertools.permutations(range(len(rows)), 2) if not set(rows[pair[0]]) & set(rows[pair[1]])
    ]
    return min(disjoint, key=lambda pair: wrong(*pair))


def save(frames: list[tuple[float, Image.Image]], target: Path) -> None:
    """Write the frames as an endless GIF; all share their colours, so that what stays the same costs nothing."""
    palette = colours_of([picture for _, picture in frames]).quantize(COLOURS, dither=Image.Dither.NONE)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for _, picture in frames]
    times = [at for at, _ in frames]
    shown = [round(1000 * (after - at)) for at, after in itertools.pairwise(times)]
    pictures[0].save(
        target, save_all=True, append_images=pictures[1:], duration=[*shown, 1500], loop=0, optimize=True, disposal=1
    )


def colours_of(pictures: list[Image.Image]) -> Image.Image:
    """The colours of some of the pictures, common ones less than their share, so that rare ones are not lost."""
    some = np.concatenate([np.asarray(picture).reshape(-1, 3) for picture in pictures[:: max(1, len(pictures) // 8)]])
    colours, counts = np.unique(some, axis=0, return_counts=True)
    drawn = np.repeat(colours, np.ceil(counts**0.4).astype(int), axis=0)
    return Image.fromarray(drawn[None])


if __name__ == "__main__":
    main()
