"""multistream-select as two machines, for the moments when both ends agree on what comes next.

Neither waits without need: the dialler sends its proposal and may send the first bytes of the
protocol right behind it, the listener answers whatever has come and hands on what lies behind.

Source: https://github.com/multiformats/multistream-select
"""

from __future__ import annotations

from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.transport import negotiation
from modelnet_p2p.node.transport.negotiation import BadNegotiation


class Proposing:
    """The dialler's half: one protocol, take it or leave it."""

    def __init__(self, protocol: str, peer: PeerId) -> None:
        self.agreed = False
        self.rest = b""  # what came behind the agreement
        self._protocol = protocol
        self._peer = peer
        self._received = bytearray()

    def start(self) -> bytes:
        return negotiation.proposal(self._protocol)

    def receive(self, data: bytes) -> bytes:
        """Take what came; answers nothing. Raises RemoteError (unknown-method: it does not speak it)."""
        self._received += data
        if negotiation.missing(self._received, 2) == 0:
            answers = _cut(self._received) + _cut(self._received)
            negotiation.check_answers(answers, self._protocol, self._peer)
            self.agreed, self.rest = True, bytes(self._received)
        return b""


class Accepting:
    """The listener's half: says no until the protocol is asked for."""

    def __init__(self, protocol: str) -> None:
        self.agreed = False
        self.rest = b""
        self._protocol = protocol
        self._received = bytearray()
        self._greeted = False
        self._refused = 0

    def start(self) -> bytes:
        return b""  # the dialler speaks first

    def receive(self, data: bytes) -> bytes:
        """Take what came; returns the answers to it. Raises BadNegotiation."""
        self._received += data
        answers = b""
        while not self.agreed and negotiation.missing(self._received, 1) == 0:
            [text] = negotiation.texts(_cut(self._received))
            answers += self._answer(text)
        if self.agreed:
            self.rest = bytes(self._received)
        return answers

    def _answer(self, text: str) -> bytes:
        if not self._greeted:
            if text != negotiation.HEADER:
                raise BadNegotiation(None, "not with multistream 1.0")
            self._greeted = True
            return negotiation.message(negotiation.HEADER)
        if text == self._protocol:
            self.agreed = True
            return negotiation.message(text)
        self._refused += 1
        if self._refused == negotiation.MAX_PROPOSALS:
            raise BadNegotiation(None, f"never asked for {self._protocol}")
        return negotiation.message(negotiation.NOT_AVAILABLE)


def _cut(received: bytearray) -> bytes:
    """Take one whole message, its length in front, off the bytes received."""
    end = 1 + received[0]
    message = bytes(received[:end])
    del received[:end]
    return message
