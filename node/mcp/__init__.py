"""Models of the network as tools of an agent: the Model Context Protocol, on stdin and stdout or over HTTP.

What the tools are stands in `tools`, what goes in and comes out in `arguments` and `answers`, none of which
knows the protocol. `server` puts them behind the official SDK, the extra `mcp`, which nothing else imports.
"""
