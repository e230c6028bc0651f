"""How texts become a network's inputs, as a bundle's manifest says it: which inputs a tokenizer makes, and how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from sensai_serve.errors import InputError
from sensai_serve.input_spec import DYNAMIC, InputSpec, Normalisation

TOKENIZER = "tokenizer.json"
"""The file in a bundle that holds the tokenizer, in the format of the library `tokenizers`."""
TEXT = "text"
"""What requests call the texts."""
CHARACTERS_OF_TOKEN, LEAST_CHARACTERS = 64, 4096
"""Characters of a text for each token that it may have, and in all, that are looked at: what tokenizers cost grows with
the text, also where most of it is cut off."""
TooLong = Literal["refuse", "cut"]


@dataclass(frozen=True)
class TokenizerSpec:
    """The bundle's tokenizer, and the inputs that hold what it makes of texts."""

    ids: str
    """The input that holds the tokens."""
    maximum: int
    """The most tokens of a text, those that the tokenizer itself adds included."""
    mask: str | None = None
    """The input that is 1 where there is a token and 0 behind the end; None where the network takes none."""
    types: str | None = None
    """The input that says which of two sentences a token is of, always the first; None where the network takes none."""
    too_long: TooLong = "refuse"
    """What becomes of longer texts: they are refused, or their first tokens are taken."""
    padding: int = 0
    """The token behind the end of a text."""
    name: str = TEXT
    """What requests call the texts."""
    file: str = TOKENIZER
    """Path inside the bundle."""

    @classmethod
    def of_inputs(cls, specs: Sequence[InputSpec], *, too_long: TooLong, padding: int) -> TokenizerSpec:
        """The tokenizer of a network's inputs: tokens, their mask and their types, told apart by their names.

        Args:
            specs: what the network takes; texts may have as many tokens as it takes.
            too_long: what becomes of longer texts.
            padding: the token behind the end of a text.

        Raises:
            InputError: no input, or several, could hold the tokens.
        """
        whole = [spec for spec in specs if spec.dtype in ("INT32", "INT64") and len(spec.shape) == 1]
        mask = next((spec.name for spec in specs if "mask" in spec.name.lower() and len(spec.shape) == 1), None)
        types = next((spec.name for spec in whole if "type" in spec.name.lower()), None)
        ids = [spec for spec in whole if spec.name not in (mask, types)]
        if len(ids) > 1:
            ids = [spec for spec in ids if spec.name == "input_ids"] or ids
        if len(ids) != 1:
            taken = " and ".join(f"{spec.name} {spec.dtype} {spec.described}" for spec in specs)
            raise InputError(f"a tokenizer is given, and the inputs are {taken}, expected one for tokens, of INT64")
        return cls(ids[0].name, ids[0].elements, mask, types, too_long, padding)

    @property
    def made(self) -> tuple[str, ...]:
        """The inputs that the tokenizer makes; clients may send these themselves instead of a text."""
        return tuple(name for name in (self.ids, self.mask, self.types) if name is not None)

    @property
    def most_characters(self) -> int:
        """Characters of a text that are looked at; a longer one is refused, or cut there first."""
        return max(LEAST_CHARACTERS, CHARACTERS_OF_TOKEN * self.maximum)

    def others(self, inputs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
        """The inputs that clients send beside a text, as no tokenizer makes them."""
        return tuple(spec for spec in inputs if spec.name not in self.made)

    def check(self, inputs: Sequence[InputSpec]) -> None:
        """Check that the network's inputs can hold what the tokenizer makes.

        Raises:
            InputError: one is missing, or of another datatype or shape than tokens have.
        """
        by_name = {spec.name: spec for spec in inputs}
        if missing := [name for name in self.made if name not in by_name]:
            raise InputError(f"tokenizer: there is no input {missing[0]!r}, expected one of {', '.join(by_name)}")
        if len(set(self.made)) != len(self.made) or self.name in by_name:
            raise InputError(f"tokenizer: {self.name}, {', '.join(self.made)} are names twice, expected different ones")
        ids = by_name[self.ids]
        for name, whole in ((self.ids, True), (self.types, True), (self.mask, False)):
            spec = ids if name is None else by_name[name]
            if whole and spec.dtype not in ("INT32", "INT64"):
                raise InputError(f"tokenizer: input {spec.name!r} is {spec.dtype}, expected INT32 or INT64 for tokens")
            if len(spec.shape) != 1 or (spec.largest, spec.axes) != (ids.largest, ids.axes):
                expected = "one axis" if spec is ids else f"{ids.described} as {ids.name!r} has"
                raise InputError(f"tokenizer: input {spec.name!r} has shape {spec.described}, expected {expected}")
            if spec.normalisation != Normalisation():
                raise InputError(f"tokenizer: input {spec.name!r} has a normalisation, expected none")
        if not 1 <= self.maximum <= ids.elements:
            raise InputError(f"tokenizer: maximum is {self.maximum}, expected 1 to {ids.elements} as {ids.name!r} has")
        largest = int(np.iinfo(ids.numpy).max) if ids.vocabulary is None else ids.vocabulary - 1
        if not 0 <= self.padding <= largest:
            raise InputError(f"tokenizer: padding is {self.padding}, expected 0 to {largest}")

    def fixed(self, inputs: Sequence[InputSpec]) -> int | None:
        """The length of every row of tokens; None where each request chooses it."""
        (size,) = next(spec.shape for spec in inputs if spec.name == self.ids)
        return None if size == DYNAMIC else size

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TokenizerSpec:
        """Read what `to_json` wrote.

        Raises:
            InputError: a key is missing, unknown, or its value impossible.
        """
        known = cls.__dataclass_fields__
        if unknown := sorted(set(raw) - set(known)):
            raise InputError(f"tokenizer: unknown key {unknown[0][:60]!r}, expected {', '.join(known)}")
        for key in ("ids", "maximum"):
            if key not in raw:
                raise InputError(f"tokenizer: {key} is missing")
        for key, value in raw.items():
            whole = key in ("maximum", "padding")
            if whole and (not isinstance(value, int) or isinstance(value, bool)):
                raise InputError(f"tokenizer: {key} is {str(value)[:60]!r}, expected a whole number")
            if not whole and not isinstance(value, str) and not (value is None and key in ("mask", "types")):
                raise InputError(f"tokenizer: {key} is {str(value)[:60]!r}, expected text")
        made = cls(**raw)
        if made.too_long not in get_args(TooLong):
            known_ways = " or ".join(get_args(TooLong))
            raise InputError(f"tokenizer: too_long is {made.too_long[:60]!r}, expected {known_ways}")
        if not 1 <= len(made.name) <= 256 or not made.name.isprintable():
            raise InputError(f"tokenizer: name is {made.name[:60]!r}, expected 1 to 256 printable characters")
        return made
