"""One who has the files: what it answers on a stream, and what goes wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import digest_text
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.pieces import CODES, Answer, Answers, BadPieces, Status


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has it, and where he is."""

    peer: PeerId
    addrs: tuple[str, ...]


class Lied(RemoteError):
    """A holder sent what its digest rules out."""

    def __init__(self, peer: PeerId, what: str) -> None:
        super().__init__(Code.BAD_INPUT, f"peer {peer} sent {what}", peer=peer.text)


async def receive(stream: Stream, answers: Answers) -> Answer:
    """The next answer; raises RemoteError, Lied for bytes that are none."""
    try:
        while True:
            answer = answers.received(await stream.receive_into(answers.buffer()))
            if answer is not None:
                return answer
    except BadPieces as error:
        raise Lied(stream.peer, f"no weights: {error}") from error


def right(answer: Answer, holder: Holder) -> Answer:
    """The answer, if it brings what was asked for; raises RemoteError with the holder's words otherwise."""
    if answer.status is not Status.HERE:
        code = CODES[answer.status]
        raise RemoteError(code, f"peer {holder.peer} says: {answer.words}", peer=holder.peer.text)
    return answer


def slow(holder: Holder) -> RemoteError:
    return RemoteError(Code.DEADLINE, f"peer {holder.peer} is too slow", peer=holder.peer.text)


def nobody(root: bytes) -> RemoteError:
    return RemoteError(
        Code.UNREACHABLE,
        f"nobody alive shares the weights {digest_text(root)}",
        hint="its publisher shares them by: modelnet-peer publish SOURCE --share-weights",
    )
