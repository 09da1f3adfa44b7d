"""What a caller catches where nurseries stood between him and the error."""

from __future__ import annotations

import pytest

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.node.single_error import single_error

BUSY = LocalError(Code.IN_USE, "the port")


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (ExceptionGroup("", [ExceptionGroup("", [KeyError("mine")])]), KeyError),
        (ExceptionGroup("", [BUSY, ExceptionGroup("", [NotFound("it")])]), LocalError),
        (BaseExceptionGroup("", [KeyError("mine"), KeyboardInterrupt()]), KeyboardInterrupt),
        (ExceptionGroup("", [BUSY, KeyError("a bug is not hidden by it")]), ExceptionGroup),
    ],
)
def test_a_group_is_what_it_stands_for(
    raised: BaseExceptionGroup[BaseException], caught: type[BaseException]
) -> None:
    with pytest.raises(caught), single_error():
        raise raised
