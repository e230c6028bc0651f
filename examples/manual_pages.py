"""Lines of running text from Debian's manual pages, in the languages that they are translated to, for `live_text`."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    "cs": "manpages-cs", "da": "manpages-da", "de": "manpages-de", "en": "manpages", "es": "manpages-es",
    "fi": "manpages-fi", "fr": "manpages-fr", "hu": "manpages-hu", "it": "manpages-it", "nl": "manpages-nl",
    "pl": "manpages-pl", "pt_BR": "manpages-pt-br", "ro": "manpages-ro", "ru": "manpages-ru", "sv": "manpages-sv",
    "uk": "manpages-uk",
}  # fmt: skip
"""Debian's package of each language, named as its folder in ``/usr/share/man`` is."""
LETTERS = 20
"""The fewest letters of a line."""
PROSE = 0.85
"""The fraction of a line that letters and spaces must be; the rest are names of options, paths and tables."""
TEST = 5
"""One page in so many is of the test part, in all languages alike: no page is trained on in another language."""
_MARKS = {":": "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", ",": "\u0327", "v": "\u030c"}
_NAMED = {"aq": "'", "cq": "\u2019", "oq": "\u2018", "lq": "\u201c", "rq": "\u201d", "dq": '"', "em": "\u2014",
          "en": "\u2013", "ss": "ß", "oa": "å", "oA": "Å", "ae": "æ", "AE": "Æ", "/o": "ø", "/O": "Ø", "Fo": "\u00ab",
          "Fc": "\u00bb", "hy": "-", "bu": "\u2022", "rs": "\\", "ti": "~", "ha": "^", "ga": "`"}  # fmt: skip
_ESCAPES = re.compile(
    r"\\(?:f(?:\[[^]]*\]|\(..|.)|\*(?:\[[^]]*\]|\(..|.)|s[-+]?\d+|\((?P<two>..)|\[(?P<name>[^]]*)\]|(?P<one>.))"
)
_ONE = {"-": "-", " ": " ", "~": " ", "0": " ", "e": "\\", "'": "'", "`": "`", ".": ".", "\\": "\\"}
_CODE = {"nf": "fi", "EX": "EE", "TS": "TE", "de": ".", "Bd": "Ed", "ig": "."}
"""Requests between which lines are no running text, and what ends them."""


@dataclass(frozen=True)
class Line:
    """One line of a page."""

    text: str
    label: str
    """The language."""
    test: bool
    """Whether its page is of the test part."""


def download(folder: Path) -> None:
    """Fetch the packages with apt and unpack them below `folder`; nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES.values()], cwd=folder, check=True)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True)


def lines(folder: Path) -> list[Line]:
    """The lines of all pages below `folder`, each once, without those that several languages have.

    Args:
        folder: holds ``man/LANGUAGE/man1/NAME.1.gz`` and, of English, ``man/man1/NAME.1.gz`` at any depth.
    """
    found: dict[tuple[str, str], bool] = {}
    for page in sorted([*folder.rglob("man/*/man[1-8]/*"), *folder.rglob("man/man[1-8]/*")]):
        label = page.parent.parent.name if page.parent.parent.name != "man" else "en"
        if label in PACKAGES and page.is_file():
            name = page.name.removesuffix(".gz")
            test = hashlib.sha256(name.encode()).digest()[0] % TEST == 0
            for text in prose(page):
                found.setdefault((text, label), test)
    languages = Counter(text for text, _ in found)
    return [Line(text, label, test) for (text, label), test in found.items() if languages[text] == 1]


def prose(page: Path) -> Iterator[str]:
    """The lines of running text in a page's source, without markup."""
    data = gzip.decompress(page.read_bytes()) if page.suffix == ".gz" else page.read_bytes()
    try:
        source = data.decode()
    except UnicodeDecodeError:
        return  # a page in an older encoding
    end = ""
    for line in source.splitlines():
        if line[:1] in (".", "'"):
            request = line[1:].split()[0][:2] if line[1:].split() else ""
            end = "" if end and line[1:].startswith(end) else end or _CODE.get(request, "")
        elif not end and line[:1].strip():
            text = " ".join(plain(line).split())
            letters, spaces = sum(map(str.isalpha, text)), text.count(" ")
            if letters >= LETTERS and letters + spaces >= PROSE * len(text):
                yield text


def plain(line: str) -> str:
    """A line without the escapes of roff."""
    line = re.sub(r"\\[\"#].*", "", line)  # comments
    return unicodedata.normalize("NFC", _ESCAPES.sub(_replaced, line))


def _replaced(escape: re.Match[str]) -> str:
    name = escape["two"] or escape["name"]
    if name is None:
        return _ONE.get(escape["one"] or "", "")
    if name in _NAMED:
        return _NAMED[name]
    if re.fullmatch(r"u[0-9A-F]{4}(?:_[0-9A-F]{4})*", name):
        return "".join(chr(int(code, 16)) for code in name[1:].split("_"))
    return name[1:] + _MARKS[name[0]] if len(name) == 2 and name[0] in _MARKS else ""
