"""The network without `await`: the synchronous face of a peer, asyncio's, and the thread between."""
