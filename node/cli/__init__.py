"""`modelnet-peer`: the commands of one peer, and of a person who only wants to ask."""

from modelnet_p2p.node.cli.app import main

__all__ = ["main"]
