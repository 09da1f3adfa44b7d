"""The documentation says what is: its commands are run, its flags exist, its links lead somewhere.

Every day the pages are read against the program; with --all a reader types each page into a shell with a
home of its own, in an empty folder, with real peers, and Sphinx builds the whole without a warning.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import pytest

import modelnet_p2p
from modelnet_p2p.node.cli import app as cli
from pages import INTERRUPT, ROOT, Block, Command, Page, commands, matches, read_page
from terminals import Terminal

PAGES = [read_page(path) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
MAX_NOT_RUN = 12  # blocks of all pages; with more, "the pages are run" would no longer be true
PROGRAM = cli.PROGRAM
_OPERATORS = re.compile(r"[();<>|&]+")
_READY = re.compile(r"^control .*\n", re.MULTILINE)  # the last line of what `join` says when it is there
_TYPED = re.compile(r"^(?:\$ |modelnet-peer |scripts/|pip )", re.MULTILINE)
_PATHS = ("docs/", "node/", "dht/", "modelnet_p2p/", "scripts/", "tests/")
_BUILD_PATIENCE = 120.0  # seconds for the build of all pages, which takes 3 on a quiet machine

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def calls_of(words: list[str]) -> Iterator[list[str]]:
    """The arguments of each `modelnet-peer` among the words of a line."""
    for start in (number for number, word in enumerate(words) if word == PROGRAM):
        rest = words[start + 1 :]
        end = next((number for number, word in enumerate(rest) if _OPERATORS.fullmatch(word)), len(rest))
        yield rest[:end]


def typed(page: Page) -> list[Command]:
    return [command for block in page.blocks if block.language == "console" for command in commands(block)]


def wrong_call(arguments: list[str], *, whole: bool) -> str | None:
    """What is wrong with a call of the program; one that is not `whole` may leave arguments out."""
    name = next((word for word in arguments if not word.startswith("-")), None)
    with click.Context(cli.app) as context:
        command: click.Command | None = cli.app
        if name is not None and not name.isupper():  # COMMAND stands for any
            arguments = arguments[arguments.index(name) + 1 :]
            command = cli.app.get_command(context, name)
        if command is None:
            return f"there is no command {name!r}"
        while isinstance(command, click.Group) and name is not None and arguments:
            inner = command.get_command(context, arguments[0])
            if inner is None:
                break
            command, arguments = inner, arguments[1:]
        with click.Context(command) as inside:
            known = {
                flag
                for parameter in command.get_params(inside)
                for flag in (*parameter.opts, *parameter.secondary_opts)
            }
            for word in arguments:
                flag = word.partition("=")[0]
                if re.match(r"--?[a-z]", flag) and flag not in known:
                    return f"{name or PROGRAM} has no {flag}"
            if not whole:
                return None
            try:
                _, rest, _ = command.make_parser(inside).parse_args(list(arguments))
            except click.UsageError as error:
                return error.format_message()
    return f"nothing takes {rest[0]!r}" if rest and not isinstance(command, click.Group) else None


@pytest.mark.parametrize(
    ("words", "whole", "right"),
    [
        ("join --lan", True, True),
        ("join --lam", False, False),
        ("joim", False, False),
        ("find --task", False, True),
        ("find --task", True, False),
        ("id extra", True, False),
        ("COMMAND --help", False, True),
        ("--version", True, True),
    ],
)
def test_a_wrong_call_is_seen(words: str, whole: bool, right: bool) -> None:
    assert (wrong_call(words.split(), whole=whole) is None) is right


@every_page
def test_commands_and_flags_exist(page: Page) -> None:
    wrong = [
        f"{command.place}: {why}"
        for command in typed(page)
        for arguments in calls_of(command.words())
        if (why := wrong_call(arguments, whole=True))
    ]
    wrong += [
        f"{command.place}: there is no {word}"
        for command in typed(page)
        for word in command.words()
        if word.startswith("scripts/") and not (ROOT / word).exists()
    ]
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").rglob("*") if is_script(path))
    flags = {flag for name in cli.app.list_commands(click.Context(cli.app)) for flag in flags_of(name)}
    for line, code in page.codes:
        words = code.split()
        for arguments in calls_of(words):
            if why := wrong_call(arguments, whole=False):
                wrong.append(f"{page.name}:{line}: {why}")
        for word in words:
            if re.fullmatch(r"--[a-z][a-z-]*", word) and word not in flags and word not in scripts:
                wrong.append(f"{page.name}:{line}: nothing has {word}")
    assert wrong == []


def is_script(path: Path) -> bool:
    return path.is_file() and path.suffix in ("", ".py", ".sh")


def flags_of(name: str) -> set[str]:
    """The flags of one command and of the commands below it."""
    context = click.Context(cli.app)
    command = cli.app.get_command(context, name)
    assert command is not None
    found = {
        flag
        for parameter in command.get_params(context)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            found |= {
                flag
                for parameter in inner.get_params(context)
                for flag in (*parameter.opts, *parameter.secondary_opts)
            }
    return found


@every_page
def test_files_variables_and_built_in_models_exist(page: Page) -> None:
    text = page.path.read_text(encoding="utf-8")
    sources = "".join(
        path.read_text(encoding="utf-8", errors="ignore")
        for folder in ("modelnet_p2p", "node", "scripts", "tests/support")
        for path in (ROOT / folder).rglob("*")
        if is_script(path)
    )
    missing = [name for name in set(re.findall(r"MODELNET_[A-Z_]+", text)) if name not in sources]
    missing += [
        code for _, code in page.codes if code.startswith(_PATHS) and not list(ROOT.glob(code.split()[0]))
    ]
    words = set(re.findall(r'"(?:builtin:)?([a-z]+)"', sources))
    missing += [name for name in set(re.findall(r"\bbuiltin:([a-z]+)", text)) if name not in words]
    assert missing == []


@every_page
def test_links_lead_somewhere(page: Page) -> None:
    broken = []
    for line, target in page.links:
        path, _, anchor = target.partition("#")
        if "://" in target or path.startswith("mailto:"):
            continue
        found = (page.path.parent / path) if path else page.path
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(f"{page.name}:{line}: {target}")
    assert broken == []


def anchors(path: Path) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_python_is_sound_and_imports_what_there_is(page: Page) -> None:
    for block in page.blocks:
        if block.language != "python":
            continue
        tree = compile(block.text, block.place, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "modelnet_p2p":
                names = {alias.name for alias in node.names}
                assert names <= set(modelnet_p2p.__all__), block.place


@every_page
def test_each_file_that_a_page_shows_is_used_on_it(page: Page) -> None:
    lines = "\n".join(command.text for command in typed(page))
    for block in page.blocks:
        if (name := block.file_name) is not None:
            used = name in lines or f"{name.removesuffix('.py')}:" in lines
            assert used, f"{block.place}: no command of the page uses {name}"


@every_page
def test_commands_stand_where_they_are_run(page: Page) -> None:
    """A command in a block of another kind would be shown to readers and typed by nobody."""
    for block in page.blocks:
        assert block.language not in ("sh", "bash", "shell", "shell-session"), f"{block.place}: use console"
        if block.language in ("", "text"):
            assert not re.search(r"^(?:\$ |modelnet-peer |scripts/|pip )", block.text, re.MULTILINE), (
                block.place
            )


def test_exit_codes_are_those_of_the_program() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = {int(number) for number in re.findall(r"^\| (\d+) \|", readme, re.MULTILINE)}
    # 0, 1 for a bug, 2 for a wrong command line, 5 and 6 for what has no code of its own
    assert told == {0, 1, 2, 5, 6} | set(cli._EXITS.values()) | set(cli._LOCAL_EXITS.values())


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    blocks = [block for page in PAGES for block in page.runnable()]
    left_out = {block.place: block.why_not for block in blocks if block.why_not is not None}
    print(f"{len(blocks) - len(left_out)} blocks are run, {len(left_out)} are not:", left_out)
    assert all(left_out.values())
    assert len(left_out) <= MAX_NOT_RUN


class Reader:
    """Types one page: a home, a runtime directory and a folder that nobody else has; terminals as needed."""

    def __init__(self, stack: ExitStack) -> None:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mn-")))  # short: it holds sockets
        self._stack = stack
        self.folder = base / "work"
        for name in ("home", "run", "work"):
            (base / name).mkdir(mode=0o700)
        self._environ = {
            "HOME": str(base / "home"),
            "XDG_RUNTIME_DIR": str(base / "run"),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
        }
        self._terminal: Terminal | None = None

    @property
    def terminal(self) -> Terminal:
        """One where nothing is in the foreground; a new one is opened where need be."""
        if self._terminal is None or self._terminal.busy:
            self._terminal = self._stack.enter_context(Terminal(self.folder, self._environ))
        return self._terminal

    def read(self, block: Block) -> None:
        if block.language == "console":
            for command in commands(block):
                self.type(command)
            return
        name = block.file_name
        path = self.folder / (name or "_block.py")
        path.write_text(block.text, encoding="utf-8")
        if name is None:
            self.type(Command(block.place, f"python3 {path.name}", (), 0))

    def type(self, command: Command) -> None:
        terminal = self.terminal
        terminal.start(command.text)
        try:
            stays = self._stays(command)
            if stays:
                terminal.wait_for(_READY)
                terminal.wait_until(lambda lines: not command.shown or matches(command.shown, lines))
            elif command.interrupted:
                self._interrupt(command)
            if stays and not command.background:
                return  # it has this terminal from now on
            status, lines = terminal.finish()
        except TimeoutError as error:
            pytest.fail(f"{command.place}: $ {command.text}\n{error}")
        printed = "\n".join(lines)
        assert status == command.status, f"{command.place}: $ {command.text}\n{printed}"
        shown = () if stays else tuple(line for line in command.shown if line != INTERRUPT)
        assert not shown or matches(shown, lines), (
            f"{command.place} shows otherwise: {command.text}\n{printed}"
        )

    def _stays(self, command: Command) -> bool:
        """Whether it is a peer that joins, and so is there for as long as the page."""
        joins = [call for call in calls_of(command.words()) if call[:1] == ["join"]]
        return bool(joins) and "--help" not in joins[0] and command.status == 0

    def _interrupt(self, command: Command) -> None:
        """Ctrl-C, when the last line above it has appeared."""
        shown = [line for line in command.shown[: command.shown.index(INTERRUPT)] if line.strip(" …")]
        if shown:
            words = r"[^\n]*".join(re.escape(part) for part in re.split(r"…|\s+", shown[-1]) if part)
            self.terminal.wait_for(re.compile(words))
        self.terminal.interrupt()


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.runs], ids=lambda page: page.name)
def test_a_reader_types_the_page_and_sees_what_it_shows(page: Page) -> None:
    with ExitStack() as stack:
        reader = Reader(stack)
        for block in page.runnable():
            if block.why_not is None:
                reader.read(block)


@pytest.mark.slow
def test_sphinx_builds_the_whole_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        timeout=_BUILD_PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"genindex"}
    assert names <= {path.stem for path in (tmp_path / "html").glob("*.html")}
    page = (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="modelnet_p2p.{name}"' in page for name in modelnet_p2p.__all__ if name[0].isupper())
