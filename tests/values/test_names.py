"""Names of models, tasks and tags: what is none, and what was probably meant."""

from __future__ import annotations

import pytest

from modelnet_p2p.errors import LocalError
from modelnet_p2p.names import check_model_name, check_tag, check_task


@pytest.mark.parametrize(
    ("check", "text", "hint"),
    [
        (check_tag, "German", "did you mean german?"),
        (check_task, " Text  Generation", "did you mean text-generation?"),
        (check_model_name, "Acme/My Net", "did you mean acme/my-net?"),
        (check_tag, "grün", ""),
        (check_tag, "", ""),
        (check_tag, "A" * 32, f"did you mean {'a' * 32}?"),
        (check_tag, "A" * 33, ""),
        (check_tag, " " * 1_000_000 + "a", ""),
    ],
)
def test_capitals_and_spaces_are_told_as_what_was_meant(check: object, text: str, hint: str) -> None:
    assert callable(check)
    with pytest.raises(LocalError) as caught:
        check(text)
    assert caught.value.hint == hint
