"""The libp2p ping protocol: 32 bytes are sent back as they came. Every network answers it.

Source: https://github.com/libp2p/specs/blob/master/ping/ping.md
"""

from __future__ import annotations

from modelnet_p2p.node.transport.contract import Stream

PING = "/ipfs/ping/1.0.0"
PING_BYTES = 32


async def receive_exactly(stream: Stream, buffer: memoryview) -> bool:
    """Fill the whole buffer; False if the far side ended before."""
    got = 0
    while got < len(buffer):
        n = await stream.receive_into(buffer[got:])
        if n == 0:
            return False
        got += n
    return True


async def answer_pings(stream: Stream) -> None:
    """The handler: send every ping back until the far side ends."""
    payload = memoryview(bytearray(PING_BYTES))
    while await receive_exactly(stream, payload):
        await stream.send([payload])
