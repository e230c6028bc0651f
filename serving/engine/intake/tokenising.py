"""Makes a model's inputs of the texts that clients send: once, in the gateway, so that workers get tokens.

Short texts take a fraction of a millisecond and are made on the event loop's thread; long ones in threads of their own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from functools import partial
from time import monotonic

from sensai_serve.bundles import Bundle
from sensai_serve.errors import UnsupportedError
from sensai_serve.tensors import Inputs
from sensai_serve.tokenizer import LONG, MISSING, Texts, TextTokenizer
from serving.engine.intake.decoding import Lane, Words

log = logging.getLogger(__name__)

THREADS = 2
SECONDS = 10.0
"""How long a request's texts may wait and be made, where the request has no deadline."""
_TEXTS = Words(
    "requests with long texts wait",
    "no tokenizer was free in time, expected fewer or shorter texts at a time",
    "text: takes too long to tokenise, expected shorter ones",
)


def can_tokenise() -> bool:
    """Whether the library is installed that makes tokens of texts."""
    return importlib.util.find_spec("tokenizers") is not None


class Tokenising:
    """The tokenizer of one model. All calls from one event loop."""

    def __init__(self, tokenizer: TextTokenizer, most: int) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: the model's.
            most: requests with long texts that wait or are made at a time.
        """
        self._tokenizer = tokenizer
        self._lane = Lane("tokenizer", THREADS, most, _TEXTS)

    def at_once(self, texts: Texts) -> Inputs | None:
        """The inputs that are made of short texts; None for long ones.

        Raises:
            RequestError: a text is empty, too long, or cannot be tokenised.
        """
        return self._tokenizer.inputs(texts) if texts.characters <= LONG else None

    async def in_turn(self, texts: Texts, within_s: float | None) -> Inputs:
        """The inputs that are made of long texts.

        Args:
            texts: N texts.
            within_s: seconds that it may take; None for `SECONDS`.

        Raises:
            RequestError: a text is empty, too long, or cannot be tokenised, or all of them take too long.
            OverloadedError: too many wait already, or no thread was free in time.
        """
        expires = monotonic() + (SECONDS if within_s is None else within_s)
        return await self._lane.run(partial(self._tokenizer.inputs, texts), expires)

    def close(self) -> None:
        """End the threads when their work is done."""
        self._lane.close()


async def open_tokenising(bundle: Bundle, most: int) -> Tokenising | None:
    """Read a bundle's tokenizer; None where it has none, or where the library is missing, which is logged.

    Raises:
        BundleError: the tokenizer is missing or damaged, or makes tokens that the network does not know.
    """
    try:
        tokenizer = await asyncio.to_thread(bundle.text_tokenizer)
    except UnsupportedError as error:
        log.warning("model %s takes tokens only: %s", bundle.manifest.name, error)
        return None
    return None if tokenizer is None else Tokenising(tokenizer, most)


def missing(bundle: Bundle) -> UnsupportedError:
    """The error for texts that cannot be made inputs of."""
    if bundle.manifest.tokenizer is None:
        return UnsupportedError(f"model {bundle.manifest.name} has no tokenizer, expected its inputs instead of a text")
    return UnsupportedError(MISSING)
