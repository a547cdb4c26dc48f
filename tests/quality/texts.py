"""Real texts: passages of many domains, cut at fixed places out of packages that Debian ships.

A package is downloaded and unpacked into the build folder, never installed. `passages.txt` is the
list: `tuning` passages may choose parameters, `reporting` passages only ever report.
"""

from __future__ import annotations

import dataclasses
import gzip
import html.parser
import pathlib
import subprocess

from build_folder import build_folder, make_once

LENGTH = 40_000  # characters of a passage at most: enough for 6,144 + 512 tokens
LIST = pathlib.Path(__file__).with_name("passages.txt")
BASIS_PROMPTS = (
    "essay",
    "faq",
    "tarfile",
    "jargon",
)  # the four that a four-prompt basis is made of
# Those that the profile is made of: all of the tuning split but four, on which choices are watched.
PROFILE_TEXTS = (
    *BASIS_PROMPTS, "letters", "perlfunc", "people", "licence", "truetype", "eigen", "jquery", "wget",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Passage:
    """One text: characters `start`.. of `member`, from the first paragraph that begins there."""

    name: str
    split: str
    domain: str
    package: str
    start: int
    member: str

    def text(self) -> str:
        """At most LENGTH characters; downloads the package on first use."""
        return cut(read_member(unpack(self.package) / self.member), self.start)


def passages(split: str | None = None) -> list[Passage]:
    """All passages of a split ('tuning' or 'reporting'), or all."""
    rows = [line.split() for line in LIST.read_text().splitlines() if not line.startswith("#")]
    found = [Passage(n, s, d, p, int(at), member) for n, s, d, p, at, member in rows]
    return [p for p in found if split in (None, p.split)]


def passage(name: str) -> Passage:
    """The passage of that name."""
    return {p.name: p for p in passages()}[name]


def cut(text: str, start: int) -> str:
    """LENGTH characters from the first paragraph (or else line) that begins at `start` or later."""
    if start:
        blank = text.find("\n\n", start)
        start = blank + 2 if 0 <= blank < start + 4_000 else text.find("\n", start) + 1
    return text[start:].lstrip("\n")[:LENGTH]


def unpack(package: str) -> pathlib.Path:
    """Folder with the files of a Debian package."""

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        command = ["apt-get", "download", "-qq", package]
        got = subprocess.run(
            command, cwd=folder.parent, capture_output=True, text=True, check=False
        )
        archives = list(folder.parent.glob("*.deb"))
        if got.returncode != 0 or len(archives) != 1:
            raise RuntimeError(
                f"{' '.join(command)} failed (apt-get update?): {got.stderr.strip()}"
            )
        subprocess.run(["dpkg", "-x", str(archives[0]), str(folder)], check=True)

    return make_once(build_folder() / "texts" / package, make)


def read_member(path: pathlib.Path) -> str:
    """A file's text: gzip undone, HTML reduced to its words."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\xa0", " ")
    if path.suffix != ".html":
        return text
    parser = _Words()
    parser.feed(text)
    return "".join(parser.parts)


class _Words(html.parser.HTMLParser):
    """Text of an HTML page; a paragraph's end becomes an empty line, other space one blank."""

    BLOCKS = ("p", "h1", "h2", "h3", "h4", "li", "blockquote", "div", "tr")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style", "title")
        if tag in self.BLOCKS and self.parts and self.parts[-1] != "\n\n":
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "title")

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if self._hidden or not words:
            return
        last = self.parts[-1] if self.parts else "\n\n"
        glued = data[:1].isspace() is False or last == "\n\n"
        self.parts.append(("" if glued else " ") + words + (" " if data[-1:].isspace() else ""))
