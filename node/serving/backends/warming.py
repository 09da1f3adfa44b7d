"""A model's first runs, on a given or a generated input, before anybody calls it.

They tell what no file says: how long a small call takes here, whether a row's answer depends on the rows
beside it (if not, calls may share a step), and how far a quantised variant is from its original.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from zipfile import BadZipFile

import numpy as np

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.ports import Port, gather
from modelnet_p2p.node.serving.description import as_note
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.payload import Value
from modelnet_p2p.tensor import DTYPES, Array

log = logging.getLogger(__name__)

RUNS = 5  # at least: the median of so many is not the one that was interrupted
MOST_RUNS = 1000  # of a model that takes no time at all
STEADY_SECONDS = 0.05  # of runs, for a quick model's: what else runs on the machine holds up several in a row
SECONDS = 2.0  # all of them together, at most; one that takes longer is the only one
FREE = (8, 32, 224)  # sizes for free dimensions but the first, tried in turn: tokens, small and usual images
ROWS = 64  # of several calls in one step: more make a step longer without making a row much cheaper
SEED = 20_250_101  # the same inputs at every start, so that what is measured with them stays the same
MAX_SAMPLE_BYTES = 64 << 20  # of a given input; a warm-up is no benchmark

Run = Callable[[list[Array]], Sequence[Value]]
Clock = Callable[[], float]  # seconds


@dataclass(frozen=True, slots=True)
class Warmth:
    """What the first runs told. `inputs` and `outputs` are of one of them, empty if none succeeded: then
    `notes` tell the publisher why."""

    latency_us: int | None = None
    batches: int = 1
    inputs: tuple[Array, ...] = ()
    outputs: tuple[Value, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_cold(self) -> bool:
        return self.latency_us is None


def warm_up(
    model: str,
    run: Run,
    ports: Sequence[Port],
    outputs: Sequence[Port],
    given: Sequence[Array] = (),
    *,
    again: Run | None = None,
    clock: Clock = time.perf_counter,
) -> Warmth:
    """Run it a few times, on the `given` input or on generated ones. What fails is a line in the log.

    `ports` are its inputs; all that is told of rows is found out only where every input and output has them.
    An input that `run` has come back from is run `again` as calls will be, which is what takes the latency.
    """
    trouble: LocalError | None = None
    for free in FREE if not given else FREE[:1]:
        inputs = list(given) or generated(ports, 1, free)
        try:
            with guard(Code.MODEL_ERROR, "it raised ", level=logging.DEBUG):
                latency, found = _timed(run, again or run, inputs, clock)
        except LocalError as error:
            trouble = error
            continue
        likes = [
            replace(port, shape=(None, *like.shape[1:])) for port, like in zip(ports, inputs, strict=True)
        ]
        rows = 1
        if latency < SECONDS and all(port.has_rows and port.dtype for port in (*ports, *outputs)):
            rows = ROWS if _has_own_rows(run, likes) else 1
        return Warmth(round(latency * 1e6), rows, tuple(inputs), tuple(found))
    assert trouble is not None
    return cold(model, f"on {'the input given' if given else 'made-up inputs'} {trouble.message}")


def cold(model: str, why: str) -> Warmth:
    """Of a model of which no run succeeded, or was tried; that is a line in the log."""
    hint = " (give an input with --sample FILE.npy)"
    log.warning("%s was not warmed up, so its offer tells no latency: %s%s", model, why, hint)
    return Warmth(notes=(as_note(f"no latency was measured: {why}", hint),))


def _timed(run: Run, again: Run, inputs: list[Array], clock: Clock) -> tuple[float, Sequence[Value]]:
    """The median of some runs in seconds, and what the last one gave; the first, which sets up, is left
    out."""
    begun = clock()
    found = run(inputs)
    at = clock()
    if (first := at - begun) >= SECONDS / 2:
        return first, found
    took: list[float] = []
    steady = at + STEADY_SECONDS
    while len(took) < MOST_RUNS and at < (begun + SECONDS if len(took) < RUNS else steady):
        found = again(inputs)
        took.append(clock() - at)
        at = clock()
    return median(took), found


def _has_own_rows(run: Run, ports: Sequence[Port]) -> bool:
    """Whether three rows give what one and two rows give: then rows of several callers may go together."""
    one, two = generated(ports, 1, 1), generated(ports, 2, 1)
    three = [np.concatenate(pair) for pair in zip(one, two, strict=True)]
    try:
        with guard(Code.MODEL_ERROR, "with rows it raised ", level=logging.DEBUG):
            apart = list(zip(run(one), run(two), strict=True))
            return all(
                _alike(np.concatenate([_tensor(first), _tensor(second)]), _tensor(joined))
                for (first, second), joined in zip(apart, run(three), strict=True)
            )
    except LocalError:
        return False


def _tensor(value: Value) -> Array:
    if not isinstance(value, np.ndarray) or not value.ndim:
        raise TypeError("an output that should have rows has none")
    return value


def _alike(apart: Array, joined: Array) -> bool:
    """Equal but for rounding: other shapes take other kernels."""
    if apart.shape != joined.shape or apart.dtype != joined.dtype:
        return False
    a, b = apart.astype(np.float64), joined.astype(np.float64)
    scale = float(np.abs(a).max(initial=0.0)) or 1.0
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True))


def generated(ports: Sequence[Port], rows: int, free: int) -> list[Array]:
    """An input that fits `ports`: fractions between 0 and 1, and whole numbers 0 or 1, which are as good an
    id of a token as a mask. Free dimensions are `rows` for the first and `free` for the others."""
    rng = np.random.default_rng(SEED + rows)
    arrays: list[Array] = []
    for port in ports:
        shape = [
            size if size is not None else (free if at else rows) for at, size in enumerate(port.shape or ())
        ]
        dtype = DTYPES[port.dtype]
        if dtype.kind in "iub":
            arrays.append(rng.integers(0, 2, shape).astype(dtype))
        else:
            arrays.append(rng.random(shape, np.float32).astype(dtype))
    return arrays


def difference(reference: Sequence[Value], found: Sequence[Value]) -> int | None:
    """How far `found` is from `reference`: the length of their difference over that of `reference`, taken
    over all tensors with fractions, in millionths. None where there is nothing to compare."""
    square = norm = 0.0
    for a, b in zip(reference, found, strict=True):
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype.kind not in "iub":
            a, b = a.astype(np.float64), b.astype(np.float64)
            square += float(((a - b) ** 2).sum())
            norm += float((a**2).sum())
    if not norm or not np.isfinite(square):
        return None
    return round(math.sqrt(square / norm) * 1e6)


def given_sample(path: Path) -> Value:
    """The input in a .npy file, or the inputs by name in a .npz file; raises LocalError (bad-input)."""
    try:
        if path.stat().st_size > MAX_SAMPLE_BYTES:
            raise LocalError(Code.BAD_INPUT, f"the sample {path} is larger than {MAX_SAMPLE_BYTES} bytes")
        with path.open("rb") as file:
            loaded = np.load(file)  # which unpickles nothing unless it is told to
            if isinstance(loaded, np.ndarray):
                return loaded
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        hint = "numpy.save writes such a file, numpy.savez one with several inputs by name"
        # numpy takes what it does not know for a pickle, and says how to have that loaded
        is_other = isinstance(error, ValueError) and "pickle" in str(error)
        why = "it is no .npy or .npz file of numbers" if is_other else error
        raise LocalError(Code.BAD_INPUT, f"cannot read the sample {path}: {why}", hint=hint) from error


def sample_arrays(path: Path | None, ports: Sequence[Port], model: str) -> list[Array]:
    """The given sample as the arrays of `ports`, empty if none was given; raises LocalError (bad-input)."""
    return [] if path is None else gather(ports, given_sample(path), model)
