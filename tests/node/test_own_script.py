"""Which function of a program a worker process can import, and what is said of the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.own_script import importable

GUARDED = 'def shout(text): return text\nif __name__ == "__main__":\n    pass\n'


def shout(text: str) -> str:
    return text


@pytest.fixture
def written_in_main(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path | None, str], Callable[..., object]]:
    """A function as one of the running script, with that name; None: of no script, but a prompt."""

    def written(script: Path | None, name: str) -> Callable[..., object]:
        main = SimpleNamespace() if script is None else SimpleNamespace(__file__=str(script))
        monkeypatch.setitem(sys.modules, "__main__", main)

        def function(text: str) -> str:
            return text

        function.__module__, function.__qualname__ = "__main__", name
        return function

    return written


Written = Callable[[Path | None, str], Callable[..., object]]


def refused(function: Callable[..., object]) -> LocalError:
    with pytest.raises(LocalError) as caught:
        importable(function, {})
    assert caught.value.code is Code.BAD_INPUT
    return caught.value


def test_a_function_of_the_script_is_imported_from_its_file(tmp_path: Path, written_in_main: Written) -> None:
    (tmp_path / "mine.py").write_text(GUARDED)
    spec, environ = importable(written_in_main(tmp_path / "mine.py", "shout"), {"A": "b"})
    assert spec == "mine:shout"
    assert environ == {"A": "b", "PYTHONPATH": str(tmp_path)}


def test_a_function_of_a_module_beside_the_script_is_found_there(
    tmp_path: Path, written_in_main: Written
) -> None:
    written_in_main(tmp_path / "mine.py", "main")
    spec, environ = importable(shout, {"PYTHONPATH": "/opt"})
    assert spec == f"{__name__}:shout"
    assert environ["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/opt"


@pytest.mark.parametrize(
    "text", ["def shout(text): return text\n", "# if __name__ == '__main__':\n", "def ("], ids=repr
)
def test_a_script_that_would_run_again_is_not_imported(
    tmp_path: Path, written_in_main: Written, text: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    error = refused(written_in_main(tmp_path / "mine.py", "shout"))
    assert "run again" in error.message
    assert "__main__" in error.hint


def test_a_script_that_is_gone_is_not_imported(tmp_path: Path, written_in_main: Written) -> None:
    assert "run again" in refused(written_in_main(tmp_path / "gone.py", "shout")).message


def test_what_was_written_at_a_prompt_belongs_into_a_file(written_in_main: Written) -> None:
    assert "%%writefile" in refused(written_in_main(None, "shout")).hint


@pytest.mark.parametrize(
    ("file", "name"), [("my-script.py", "shout"), ("mine.py", "main.<locals>.f"), ("m", "f")]
)
def test_what_has_no_name_to_import_is_refused(
    tmp_path: Path, written_in_main: Written, file: str, name: str
) -> None:
    (tmp_path / file).write_text(GUARDED)
    assert "MODULE:NAME" in refused(written_in_main(tmp_path / file, name)).hint
