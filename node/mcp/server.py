"""The tools behind the official SDK: each call of an agent becomes a question to a peer.

The SDK speaks the protocol, its older and newer forms, over whatever carries it. When an agent cancels a
call, it cancels the task that runs here, and so the model on the far side.
"""

from __future__ import annotations

from typing import Any

import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError

from modelnet_p2p import __version__
from modelnet_p2p.errors import ModelnetError
from modelnet_p2p.node.mcp import tools
from modelnet_p2p.node.mcp.answers import Answer, as_error, as_text
from modelnet_p2p.node.mcp.arguments import Wanted, Wish, model_of
from modelnet_p2p.node.mcp.asking import Ask, describe, find, invoke
from modelnet_p2p.node.mcp.tools import DEFAULT_SECONDS, DESCRIBE, FIND, INSTRUCTIONS, INVOKE, TOOLS

Context = ServerRequestContext[Any, Any]  # Any: the SDK's state of a server, and the HTTP request, if any


def build_server(ask: Ask, seconds: float = DEFAULT_SECONDS) -> Server[Any]:
    """A server whose tools ask `ask`; a call that names no timeout has `seconds`."""

    async def on_list_tools(
        context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_told(tool) for tool in TOOLS])

    async def on_call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        async def on_piece(number: int, said: str) -> None:
            await context.session.report_progress(float(number), message=said)

        given = params.arguments or {}
        try:
            match params.name:
                case tools.FIND:
                    return _result(await find(ask, Wanted.of(given)))
                case tools.DESCRIBE:
                    return _result(await describe(ask, model_of(given)))
                case tools.INVOKE:
                    answer = await invoke(ask, Wish.of(given, seconds), on_piece)
                    return _result(answer, answer["output"])
        except ModelnetError as error:
            text, told = as_error(error)
            return types.CallToolResult(content=[_text(text)], structured_content=told, is_error=True)
        names = ", ".join((FIND, DESCRIBE, INVOKE))
        raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name[:40]!r}: there are {names}")

    return Server(
        "modelnet",
        title="modelnet",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=on_list_tools,
        on_call_tool=on_call_tool,
    )


def _told(tool: tools.Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.takes,
        output_schema=tool.gives,
        annotations=types.ToolAnnotations(read_only_hint=tool.reads, open_world_hint=True),
    )


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def _result(answer: Answer, shown: object = None) -> types.CallToolResult:
    """Text for agents that read text, the structure for those that read that."""
    text = as_text(answer if shown is None else shown)
    return types.CallToolResult(content=[_text(text)], structured_content=answer)
