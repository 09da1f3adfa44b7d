"""The words of ASGI that the gateway's parts have in common, and share with the SDK behind `/mcp`.

Beyond ASGI there are three. `held` in the start of an answer lets it wait for the first bytes of the body,
so that both leave in one piece. `scope["state"]["on_gone"]` takes what is to be called when the client hangs
up (None: nobody is to be told any more), `scope["state"]["come"]` says that all of the body is there already.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]  # Any: ASGI's maps hold what each of their keys asks for
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
OnGone: TypeAlias = Callable[[Callable[[], None] | None], None]
