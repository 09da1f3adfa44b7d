"""Whether the SDK is there: it is an extra, and the only thing here that is not installed with the rest."""

from __future__ import annotations

import sys

from modelnet_p2p.errors import Code, LocalError


def check_sdk() -> None:
    """Raises LocalError (bad-state) with the line to type where the SDK is not installed, or too old."""
    try:
        import mcp  # noqa: F401
        import mcp_types  # noqa: F401  of its second edition; the first one has another API
    except ModuleNotFoundError as error:
        what = "a newer mcp" if "mcp" in sys.modules else "mcp"
        raise LocalError(
            Code.BAD_STATE,
            f"the Model Context Protocol needs {what}, which {sys.executable} does not have",
            hint="pip install 'modelnet-p2p[mcp]'",
        ) from error
