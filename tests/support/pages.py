"""The pages of the documentation as the tests read them: blocks, commands, links, and what is not run.

A reader sees nothing of the marks; they are HTML comments just before the block that they speak of:

    <!-- not run: REASON -->      the block cannot run here (another machine's address), and why
    <!-- run first:
    $ COMMAND                     what this page needs and another page explains
    -->

In a `console` block each line that begins with `$ ` is a command, up to the end of its here-document or
backslash; what follows it is what it prints, where `…` stands for anything, and alone on a line for any
number of lines. Ports and figures with a decimal point are measured anew. No output shown means that any
will do. `^C` in the output is typed when everything above it has appeared. A command that is meant to fail
says so to the reader as well: `# exit 7: no peer is running`.

A `python` block whose first line is a comment with a file name is saved as that file, and some command of
the page uses it; any other is run as it stands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>.*?)\s*-->", re.DOTALL)
_RUN_FIRST = re.compile(r"<!--\s*run first:\s*\n(?P<commands>.*?)\n\s*-->", re.DOTALL)
_EXITS = re.compile(r"#.*\bexit (?P<status>\d+)")
_HEREDOC = re.compile(r"<<-?\s*['\"]?(?P<end>\w+)['\"]?")
_FILE_NAME = re.compile(r"#\s*(?P<name>[\w-]+\.(?:py|toml)) *(?:\n|[:,])")
INTERRUPT = "^C"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `why_not` is the reason why it is not run, a `hidden` one the reader does not see."""

    page: str
    line: int
    language: str
    text: str
    why_not: str | None = None
    hidden: bool = False

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The file as which this block is saved, None where it is none."""
        found = _FILE_NAME.match(self.text)
        return found["name"] if found else None


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed at one prompt, what the page says that it prints, and its exit status."""

    place: str
    text: str
    shown: tuple[str, ...]
    status: int

    @property
    def interrupted(self) -> bool:
        return INTERRUPT in self.shown

    @property
    def background(self) -> bool:
        return self.words()[-1:] == ["&"]

    def words(self) -> list[str]:
        """The words of its first line, without its comment."""
        lexer = shlex.shlex(self.text.splitlines()[0], posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        return list(lexer)


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its blocks in order, what stands between backquotes, and where its links go."""

    path: Path
    blocks: tuple[Block, ...]
    codes: tuple[tuple[int, str], ...]
    links: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def runs(self) -> bool:
        """Whether anything on it is run."""
        return any(block.why_not is None and not block.hidden for block in self.runnable())

    def runnable(self) -> Iterator[Block]:
        yield from (block for block in self.blocks if block.language in ("console", "python"))


def read_page(path: Path) -> Page:
    """Read as GitHub does and Sphinx, which both hide HTML comments."""
    return parse_page(path, path.read_text(encoding="utf-8"))


def parse_page(path: Path, text: str) -> Page:
    name = path.relative_to(ROOT).as_posix() if path.is_absolute() else path.as_posix()
    blocks: list[Block] = []
    codes: list[tuple[int, str]] = []
    links: list[tuple[int, str]] = []
    remark = ""  # the comment just before what comes now
    line = 1
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        line = token.map[0] + 1 if token.map else line
        if token.type == "html_block":
            remark = token.content
            if found := _RUN_FIRST.search(remark):
                blocks.append(Block(name, line, "console", found["commands"], hidden=True))
            continue
        if token.type == "fence":
            why = _NOT_RUN.search(remark)
            language = (token.info.split() or [""])[0]
            blocks.append(Block(name, line, language, token.content, why["reason"] if why else None))
        for child in token.children or ():
            _read_inline(child, line, codes, links)
        remark = ""
    return Page(path, tuple(blocks), tuple(codes), tuple(links))


def _read_inline(token: Token, line: int, codes: list[tuple[int, str]], links: list[tuple[int, str]]) -> None:
    if token.type == "code_inline":
        codes.append((line, token.content))
    elif token.type == "link_open":
        links.append((line, str(token.attrGet("href"))))


def commands(block: Block) -> list[Command]:
    """The commands of a `console` block; raises ValueError for output before the first prompt."""
    found: list[Command] = []
    shown: list[str] = []
    lines = iter(enumerate(block.text.splitlines(), block.line + 1))
    for number, line in lines:
        if not line.startswith("$ "):
            if not found:
                raise ValueError(f"{block.page}:{number}: output before the first `$ `")
            shown.append(line)
            continue
        if found:
            found[-1] = replace(found[-1], shown=_trimmed(shown))
            shown = []
        text = line.removeprefix("$ ")
        end = _HEREDOC.search(text)
        while end is not None or text.endswith("\\"):
            number, more = next(lines, (number, None))
            if more is None:
                raise ValueError(f"{block.page}:{number}: the command does not end")
            text += "\n" + more
            if end is not None and more == end["end"]:
                break
        meant = _EXITS.search(text.splitlines()[0])
        place = f"{block.page}:{number}"
        found.append(Command(place, text, (), int(meant["status"]) if meant else 0))
    if found:
        found[-1] = replace(found[-1], shown=_trimmed(shown))
    return found


def _trimmed(lines: list[str]) -> tuple[str, ...]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return tuple(line.rstrip() for line in lines)


def matches(shown: tuple[str, ...], printed: list[str]) -> bool:
    """Whether a command printed what its page shows."""
    pattern = ""
    for line in shown:
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*"
        else:
            pattern += r" *" + r" +".join(_word_pattern(word) for word in line.split()) + r" *\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def _word_pattern(word: str) -> str:
    """A word as shown: `…` is anything, a port or a figure with a decimal point another one."""
    pattern = ""
    for part in re.split(r"((?<![\d.])\d+\.\d+(?:e-\d+)?(?![\d.])|(?<=/tcp/)\d+|…)", word):
        if part == "…":
            pattern += r"[^\n]*"
        elif re.fullmatch(r"\d+\.\d+(?:e-\d+)?", part):
            pattern += r"\d+\.\d+(?:e-\d+)?"
        elif part.isdecimal() and pattern.endswith("/tcp/"):
            pattern += r"\d+"
        else:
            pattern += re.escape(part)
    return pattern
