"""The documents as what they ask a reader to type: blocks of code, and what is said of those that are not run here.

The first word behind the fence is the language. What follows it, which no reader of the rendered page sees, marks a
block that is not simply run on an embedded node: `skip: WHY`, `vm: TEST` for one of a machine with systemd and the
test that runs it there, `test: TEST` for one that a test of its own runs here, `job: WHY` for what a job itself does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

ROOT: Final = Path(__file__).parents[2]
JOB: Final = "job"
TEST: Final = "test"
MARKS: Final = ("skip", "vm", JOB, TEST)
LANGUAGES: Final = ("console", "json", "nix", "python", "sh", "sql", "text", "toml", "yaml")
_FENCE: Final = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_PROMPT: Final = re.compile(r"(?P<who>[a-z]*)(?P<sign>[#$]) (?P<command>.+)")
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")


class Block(Struct, frozen=True):
    """A piece of code of a document."""

    document: str
    line: int
    language: str
    mark: str
    """"" for one that is simply run."""
    why: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


class Typed(Struct, frozen=True):
    """A command that a block shows behind a prompt."""

    who: str
    """The user or the machine that the prompt names."""
    is_root: bool
    command: str
    after: str
    """The lines that follow: what it prints, or what is typed into it."""


def documents() -> list[str]:
    """Return every document for users, as paths below the root."""
    docs = ROOT / "docs"
    found = [ROOT / "README.md", *sorted(docs.glob("*.md")), *sorted(docs.glob("reference/*.md"))]
    return [str(path.relative_to(ROOT)) for path in found]


def blocks(document: str) -> list[Block]:
    """Return the blocks of a document, in order."""
    text = (ROOT / document).read_text()
    found = []
    for fenced in _FENCE.finditer(text):
        language, _, rest = fenced["info"].strip().partition(" ")
        mark, _, why = rest.partition(":")
        line = text.count("\n", 0, fenced.start()) + 1
        found.append(Block(document, line, language, mark.strip(), why.strip(), fenced["text"]))
    return found


def console(block: Block) -> Iterator[Typed]:
    """Yield the commands of a block that shows a console."""
    lines = block.text.splitlines()
    prompts = [(number, found) for number, line in enumerate(lines) if (found := _PROMPT.fullmatch(line))]
    ends = [number for number, _ in prompts[1:]] + [len(lines)]
    for (number, prompt), end in zip(prompts, ends, strict=True):
        yield Typed(prompt["who"], prompt["sign"] == "#", prompt["command"], "\n".join(lines[number + 1 : end]))


def anchors(path: Path) -> set[str]:
    """Return the names of a document's headings, as links refer to them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(document: str) -> Iterator[tuple[Path, str]]:
    """Yield the links of a document to others of the project: the path, and the heading or ""."""
    for target in _LINK.findall(_FENCE.sub("", (ROOT / document).read_text())):
        if re.match(r"[a-z]+:", target) is None:
            path, _, heading = target.partition("#")
            yield ((ROOT / document).parent / path if path else ROOT / document), heading
