"""Every number that is a matter of taste or of the network's kind, with its unit and its reason.

Three presets: `lan` (one building: low delay, generous limits), `wan` (the internet), `test`
(short waits, so that failures show at once). A bound that protects memory or safety and does
not depend on the network stands beside the code it bounds, not here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from modelnet_p2p.errors import Code, LocalError


@dataclass(frozen=True, slots=True)
class Tuning:
    """All times in seconds."""

    name: str

    # --- the overlay (the papers' names) ---
    k: int = 20  # holders of a key, entries of a bucket
    alpha: int = 10  # requests in flight in a walk that stores
    alpha_read: int = 3  # ... in one that reads: fewer, for the reader waits for beta answers only
    beta: int = 3  # a read ends when the beta closest peers that it knows have answered
    patience: float = 1.0  # a request without an answer this long no longer holds up its walk
    request_timeout: float = 5.0  # ... and this long is a failure of that peer
    record_lifetime: float = 2 * 3600.0  # of an offer; re-signed at half of it
    republish: float = 600.0  # holders are told again at this interval
    table_refresh: float = 300.0  # a bucket without news this long is looked up again
    bootstrap_retry: float = 5.0  # between tries of bootstraps that did not answer
    requests_per_second: float = 500.0  # sustained DHT requests served per peer
    requests_burst: int = 500
    checks_per_second: float = 1000.0  # sustained signature checks for one peer: 2 of some 100 us an offer
    checks_burst: int = 1000

    # --- liveness: all its other times follow from this one (`dht/liveness/suspicion.py`) ---
    beat: float = 2.0  # between two signs of life to each watcher; a death is found after three of them

    # --- connections ---
    dial_timeout: float = 5.0  # TCP, Noise, muxer and identify together
    max_connections: int = 256
    max_connections_per_peer: int = 8
    kept_connections: int = 128  # beyond these, what only the overlay uses is closed, longest unused first
    max_streams_per_peer: int = 512  # of one connection, in either direction; more are refused as busy
    idle_stream: float = 60.0  # a pooled stream unused this long is closed

    # --- calls ---
    call_timeout: float = 30.0  # a call without a deadline of its own
    ping_timeout: float = 1.0  # how long find and invoke wait for a candidate's sign of life
    frame_body_timeout: float = 5.0  # inside a started frame, to the next byte
    stall_timeout: float = 30.0  # a reader without progress this long loses its slot
    cancel_grace: float = 1.0  # what a cancelled model gets before its worker is killed
    shutdown_grace: float = 3.0  # calls in flight when the peer leaves


LAN = Tuning("lan")
WAN = replace(
    LAN,
    name="wan",
    patience=3.0,
    request_timeout=10.0,
    requests_per_second=20.0,
    requests_burst=200,
    checks_per_second=100.0,
    checks_burst=400,
    dial_timeout=10.0,
    ping_timeout=3.0,
)
TEST = replace(
    LAN,
    name="test",
    patience=0.3,
    request_timeout=2.0,
    dial_timeout=2.0,
    bootstrap_retry=0.5,
    republish=5.0,
    beat=0.5,
    ping_timeout=0.5,
    frame_body_timeout=1.0,
    stall_timeout=3.0,
    cancel_grace=0.2,
    shutdown_grace=1.0,
)

PRESETS = {preset.name: preset for preset in (LAN, WAN, TEST)}


def preset(name: str) -> Tuning:
    """The preset of that name; raises LocalError (bad-input) for any other."""
    if name not in PRESETS:
        raise LocalError(Code.BAD_INPUT, f"no tuning {name!r}", hint=f"one of {', '.join(PRESETS)}")
    return PRESETS[name]
