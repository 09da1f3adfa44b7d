"""What one reader of records takes for sealed the other one does too: `modelnet.mjs`, and ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bad_records import (
    cases,
    cut_or_stuffed,
    duplicate_key,
    flipped,
    make_world,
    no_signature,
    not_canonical,
    strayed,
    wrong_domain,
    wrong_signer,
)
from modelnet_p2p.canonical import unpack
from modelnet_p2p.envelope import Roots, open_envelope
from modelnet_p2p.records import BadRecord

pytestmark = [pytest.mark.js]
HERE = Path(__file__).parent
EACH = 200  # cases of each kind
BAD = (
    flipped,
    cut_or_stuffed,
    wrong_domain,
    wrong_signer,
    no_signature,
    strayed,
    not_canonical,
    duplicate_key,
)
READER = """
import { open } from './modelnet.mjs'
import { createInterface } from 'node:readline'
for await (const line of createInterface({ input: process.stdin })) {
  try { open(Buffer.from(line, 'hex')); console.log('sound') } catch { console.log('refused') }
}
"""


def ours(envelope: bytes) -> str:
    """Its seal alone, as `open` of the js module checks it, and whether its payload is canonical."""
    try:
        opened = open_envelope(envelope, max_bytes=4096, roots=Roots())
        unpack(opened.payload)
    except BadRecord:
        return "refused"
    return "refused" if opened.path and opened.payload_type != b"/modelnet/card/1" else "sound"


def test_both_take_the_same_seals_for_sound(node: str) -> None:
    world = make_world()
    made = [case.envelope for maker in BAD for case in cases(world, maker, EACH)]
    made = [envelope for envelope in made if len(envelope) <= 4096]
    made += [sealed.envelope for sealed in (*world.good.values(), *world.together)]
    lines = "".join(envelope.hex() + "\n" for envelope in made)
    done = subprocess.run(
        [node, "--input-type=module", "--eval", READER],
        cwd=HERE,
        input=lines,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    theirs = done.stdout.split()
    assert len(theirs) == len(made)
    differ = [(envelope.hex(), js) for envelope, js in zip(made, theirs, strict=True) if js != ours(envelope)]
    assert not differ
    assert theirs[-len(world.together) :] == ["sound"] * len(world.together)
