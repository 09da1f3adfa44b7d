"""Bytes through a sealer and an opener as a whole, where a test does not look at the buffers."""

from __future__ import annotations

from modelnet_p2p.node.transport.wire.sealing import MAX_PLAIN, MAX_WIRE, Opener, Sealer


def seal(sealer: Sealer, plain: bytes) -> bytes:
    out = memoryview(bytearray(MAX_WIRE))
    return bytes(out[: sealer.seal_into(memoryview(plain), out, 0)])


def opened(opener: Opener, data: bytes) -> bytes:
    room = memoryview(bytearray(MAX_WIRE + len(data)))
    start = opener.begin(room)
    room[start : start + len(data)] = data
    scratch = memoryview(bytearray(MAX_PLAIN))
    return b"".join(bytes(plain) for plain in opener.open(room, start + len(data), scratch))
