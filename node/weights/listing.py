"""Fetches the listing of a digest: which files it is of, and the hash of each piece of them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence

import trio

from modelnet_p2p.artifact import Artifact
from modelnet_p2p.digest import MAX_LISTING_BYTES, BadArtifact
from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.names import digest_text
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.node.weights.holders import Holder, Lied, nobody, receive, right, slow
from modelnet_p2p.node.weights.patience import Patience
from modelnet_p2p.pieces import Answers, Ask, Kind

LISTING_SECONDS = 60.0  # for a listing, of which 64 MiB are the largest
LISTING_HEAD_START = 1.0  # seconds before the next holder is asked for the listing, too
MAX_LISTINGS = 2  # on their way at the same time: a liar's may take 64 MiB each

Open = Callable[[Holder], Awaitable[Stream]]


async def fetch_listing(
    root: bytes, holders: Sequence[Holder], liars: set[str], open: Open, patience: Patience
) -> Artifact:
    """The first right one; raises RemoteError when nobody is left, or who is left stays busy for too long."""
    while True:
        found, errors = await _ask_all(root, holders, open)
        liars.update(holder.peer.text for holder, error in errors.items() if isinstance(error, Lied))
        if found is not None:
            return found
        holders = [holder for holder, error in errors.items() if error.code is Code.BUSY]
        if not holders or not await patience.wait(len(holders), 0):
            raise list(errors.values())[-1] if errors else nobody(root)


async def _ask_all(
    root: bytes, holders: Sequence[Holder], open: Open
) -> tuple[Artifact | None, dict[Holder, RemoteError]]:
    """The first right one, and why others gave none.

    Each holder is asked a while after the one before, or when that failed.
    """
    found: list[Artifact] = []
    errors: dict[Holder, RemoteError] = {}
    limit = trio.CapacityLimiter(MAX_LISTINGS)
    async with trio.open_nursery() as nursery:

        async def try_one(holder: Holder, ended: trio.Event) -> None:
            try:
                async with limit:
                    found.append(await _listing_of(root, holder, open))
                nursery.cancel_scope.cancel()
            except RemoteError as error:
                errors[holder] = error
            ended.set()

        for holder in holders:
            ended = trio.Event()
            nursery.start_soon(try_one, holder, ended)
            with trio.move_on_after(LISTING_HEAD_START):
                await ended.wait()
    return found[0] if found else None, errors


async def _listing_of(root: bytes, holder: Holder, open: Open) -> Artifact:
    answers = Answers()
    try:
        with trio.fail_after(LISTING_SECONDS):
            async with await open(holder) as stream:
                await stream.send([answers.ask(Ask(Kind.LISTING, root), MAX_LISTING_BYTES, exact=False)])
                body = right(await receive(stream, answers), holder).body
    except trio.TooSlowError:
        raise slow(holder) from None

    def checked() -> Artifact:
        if hashlib.sha256(body).digest() != root:
            raise Lied(holder.peer, f"another listing than that of {digest_text(root)}")
        return Artifact.decode(bytes(body))

    try:
        return await trio.to_thread.run_sync(checked)
    except BadArtifact as error:  # then the owner has sealed no listing
        words = f"{digest_text(root)} is no digest of files: {error}"
        raise RemoteError(Code.BAD_RECORD, words, peer=holder.peer.text) from error
