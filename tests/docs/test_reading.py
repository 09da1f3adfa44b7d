"""How pages are read: blocks, prompts, marks; and what counts as the output that a page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pages import Page, commands, matches, parse_page


def page(text: str) -> Page:
    return parse_page(Path("page.md"), text)


def test_commands_are_what_stands_behind_a_prompt_and_what_follows_is_what_they_print() -> None:
    (block,) = page("Say:\n\n```console\n$ one --flag | two\nout\n\n$ three  # exit 7: nobody\n```\n").blocks
    first, second = commands(block)
    assert (first.text, first.shown, first.status) == ("one --flag | two", ("out",), 0)
    assert first.words() == ["one", "--flag", "|", "two"]
    assert (second.words(), second.shown, second.status) == (["three"], (), 7)
    assert second.place == "page.md:7"


def test_here_documents_and_backslashes_belong_to_their_command() -> None:
    (block,) = page("```console\n$ cat > a <<'END'\n$ not a prompt\nEND\n$ b \\\n  c &\n```\n").blocks
    first, second = commands(block)
    assert first.text == "cat > a <<'END'\n$ not a prompt\nEND"
    assert second.text == "b \\\n  c &"
    (endless,) = page("```console\n$ cat <<END\nnever\n```\n").blocks
    with pytest.raises(ValueError, match="does not end"):
        commands(endless)


def test_output_without_a_prompt_is_an_error_of_the_page() -> None:
    (block,) = page("```console\nmodelnet-peer join\n```\n").blocks
    with pytest.raises(ValueError, match=r"page.md:2: output before the first"):
        commands(block)


def test_marks_speak_of_the_block_just_behind_them() -> None:
    mark = "<!-- not run: another machine's\n address -->\n\n"
    first, second = page(f"{mark}```console\n$ a\n```\n\nWords.\n\n```console\n$ b\n```\n").blocks
    assert (first.why_not, second.why_not) == ("another machine's\n address", None)
    far = "<!-- not run: far away -->\n\nWords between.\n\n```console\n$ a\n```\n"
    assert page(far).blocks[0].why_not is None


def test_what_another_page_explains_is_run_first_and_hidden() -> None:
    (block,) = page("<!-- run first:\n$ modelnet-peer join &\n-->\n").blocks
    assert block.hidden
    assert [command.background for command in commands(block)] == [True]


def test_a_file_is_named_by_its_first_line() -> None:
    texts = (
        "# ask.py\nimport trio\n",
        "# ask.py: who is there\n",
        "# a word about ask.py\n",
        "import trio\n",
    )
    names = [page(f"```python\n{text}```\n").blocks[0].file_name for text in texts]
    assert names == ["ask.py", "ask.py", None, None]


def test_inline_code_and_links_are_read_in_tables_too() -> None:
    read = page("See [it](docs/a.md#b).\n\n| a |\n|---|\n| `x --y` |\n")
    assert read.links == ((1, "docs/a.md#b"),)
    assert [code for _, code in read.codes] == ["x --y"]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (("a  b",), ["a      b"], True),
        (("a b",), ["a c"], False),
        (("a",), ["a", "b"], False),
        (("a", "…"), ["a", "b", "c"], True),
        (("a", "…", "d"), ["a", "d"], True),
        (("a", "…", "d"), ["a", "b"], False),
        (("ready 12D3KooW…",), ["ready  12D3KooWNCBs"], True),
        (("/ip4/127.0.0.1/tcp/4001/p2p/12D3…",), ["/ip4/127.0.0.1/tcp/33121/p2p/12D3KooW"], True),
        (("/ip4/127.0.0.1/tcp/4001",), ["/ip4/127.0.0.2/tcp/4001"], False),
        (("alive 0.6 0%",), ["alive  12.25  0%"], True),
        (("alive 0.6 0%",), ["alive  0.6  1%"], False),
    ],
)
def test_output_is_compared_as_a_reader_would(shown: tuple[str, ...], printed: list[str], same: bool) -> None:
    assert matches(shown, printed) is same
