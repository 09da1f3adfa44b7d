#!/usr/bin/env python3
"""Trains the digits family that ships with the peer, and seals its manifest with the owner's key.

scikit-learn gives the data and nothing else; the network and its gradients are numpy. The split is
fixed by a seed: 1,097 images to train, 250 to choose the number of epochs and the default exit,
450 that are looked at once, for the accuracy in the manifest. Takes a few seconds.

    python scripts/train_digits.py --key ~/keys/project.key
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from sklearn.datasets import load_digits

from modelnet_p2p.digest import listing_of
from modelnet_p2p.identity import SEED_BYTES, KeyPair
from modelnet_p2p.names import digest_text
from modelnet_p2p.node.serving.backends.digits_net import CLASSES, EXITS, PIXELS, WHITE, DigitsNet, softmax
from modelnet_p2p.records import Manifest, seal_manifest

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "node" / "serving" / "backends" / "digits"
SEED = 20240229
WIDTH, INNER = 96, 128
TRAINING, VALIDATION, TEST = 1097, 250, 450
EPOCHS, BATCH, RATE, DECAY = 60, 64, 2e-3, 1e-4

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Weights = dict[str, Floats]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--key", type=Path, required=True, help="the owner's key file, made if absent")
    parser.add_argument("--version", default="1")
    options = parser.parse_args()
    key = owner_key(options.key)
    rng = np.random.default_rng(SEED)
    data = load_digits()
    order = rng.permutation(len(data.target))
    images = data.images.astype(np.float32)[order]
    labels = data.target.astype(np.int64)[order]
    train, rest = slice(0, TRAINING), slice(TRAINING, TRAINING + VALIDATION)
    weights = fit(images[train], labels[train], images[rest], labels[rest], rng)
    chosen = [accuracy(weights, images[rest], labels[rest], exit) for exit in range(1, EXITS + 1)]
    best = 1 + chosen.index(max(chosen))
    held_out = slice(TRAINING + VALIDATION, TRAINING + VALIDATION + TEST)
    tested = [accuracy(weights, images[held_out], labels[held_out], exit) for exit in range(1, EXITS + 1)]
    print("validation:", chosen, "test:", tested, "default exit:", best)
    ship(weights, best, tested, key, options.version)
    return 0


def owner_key(path: Path) -> KeyPair:
    """The key in `path`, 32 raw bytes; made there, readable by its owner alone, if there is none."""
    path = path.expanduser().resolve()
    if path.is_relative_to(ROOT):
        sys.exit(f"{path} lies in the repository; keep the owner's key elsewhere")
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SEED_BYTES))
    return KeyPair(path.read_bytes())


def fit(images: Floats, labels: Labels, val_images: Floats, val_labels: Labels,
        rng: np.random.Generator) -> Weights:  # fmt: skip
    """Adam on the sum of the three exits' losses; the epoch that validates best is kept."""
    weights = fresh_weights(rng)
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    best, best_score, step = weights, 0.0, 0
    for epoch in range(EPOCHS):
        rate = RATE * 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS))
        order = rng.permutation(len(images))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            step += 1
            for name, slope in gradients(weights, shifted(images[rows], rng), labels[rows]).items():
                first[name] = 0.9 * first[name] + 0.1 * slope
                second[name] = 0.999 * second[name] + 0.001 * slope * slope
                move = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
                weights[name] = (weights[name] * (1 - rate * DECAY) - rate * move).astype(np.float32)
        score = sum(accuracy(weights, val_images, val_labels, exit) for exit in range(1, EXITS + 1))
        if score >= best_score:
            best, best_score = dict(weights), score
    return best


def fresh_weights(rng: np.random.Generator) -> Weights:
    layers = [("stem", PIXELS, WIDTH)]
    for depth in range(1, EXITS):
        layers += [(f"block{depth}.up", WIDTH, INNER), (f"block{depth}.down", INNER, WIDTH)]
    layers += [(f"exit{exit}", WIDTH, CLASSES) for exit in range(1, EXITS + 1)]
    weights: Weights = {}
    for name, inputs, outputs in layers:
        scale = np.sqrt(2 / inputs) * (0.3 if "down" in name else 1.0)
        weights[f"{name}.weight"] = (rng.standard_normal((inputs, outputs)) * scale).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(outputs, np.float32)
    return weights


def shifted(images: Floats, rng: np.random.Generator) -> Floats:
    """Half of the images moved by one pixel: people do not write in the middle of the box."""
    moved = images.copy()
    for row in np.flatnonzero(rng.random(len(images)) < 0.5):
        axis, by = int(rng.integers(2)), int(rng.choice((-1, 1)))
        moved[row] = np.roll(images[row], by, axis)
        edge = 0 if by == 1 else -1
        moved[row][(edge, slice(None)) if axis == 0 else (slice(None), edge)] = 0
    return moved


def gradients(weights: Weights, images: Floats, labels: Labels) -> Weights:
    """Of the mean cross-entropy, summed over the exits: forward with notes, then back through them."""
    net, slopes = DigitsNet(weights), {}
    truth: Floats = np.eye(CLASSES, dtype=np.float32)[labels]
    share = np.float32(1 / len(labels))
    hidden = [net.stem(images)]
    inner = []
    for depth in range(1, EXITS):
        up = hidden[-1] @ weights[f"block{depth}.up.weight"] + weights[f"block{depth}.up.bias"]
        inner.append(np.maximum(up, 0))
        hidden.append(net.block(hidden[-1], depth))
    back: Callable[[str, Floats, Floats], Floats] = lambda name, rows, slope: (  # noqa: E731
        slopes.update({f"{name}.weight": rows.T @ slope, f"{name}.bias": slope.sum(axis=0)})
        or slope @ weights[f"{name}.weight"].T
    )
    flow: Floats = np.zeros_like(hidden[-1])
    for exit in range(EXITS, 0, -1):
        state = hidden[exit - 1]
        flow += back(f"exit{exit}", state, (softmax(net.answer(state, exit)) - truth) * share)
        if exit > 1:
            inside = back(f"block{exit - 1}.down", inner[exit - 2], flow) * (inner[exit - 2] > np.float32(0))
            flow += back(f"block{exit - 1}.up", hidden[exit - 2], inside)
    pixels = images.reshape(len(images), PIXELS) / np.float32(WHITE)
    back("stem", pixels, flow * (hidden[0] > 0))
    return slopes


def accuracy(weights: Weights, images: Floats, labels: Labels, exit: int) -> float:
    answers = DigitsNet(weights).scores(images, exit).argmax(axis=1)
    return float((answers == labels).mean())


def ship(weights: Weights, best: int, tested: list[float], key: KeyPair, version: str) -> None:
    """Write weights, listing and sealed manifest beside the code that serves them."""
    data = save(weights, metadata={"default_exit": str(best)})
    listing = listing_of(data)
    millionths = [round(score * 1_000_000) for score in tested]
    manifest = Manifest(
        owner=key.id,
        name="modelnet/digits",
        version=version,
        task="image-classification",
        licence="Apache-2.0",
        digest=listing.root,
        issued_unix=int(time.time()),
        metrics={"accuracy": millionths[best - 1]}
        | {f"accuracy.exit{exit}": score for exit, score in enumerate(millionths, 1)},
    )
    HOME.mkdir(exist_ok=True)
    (HOME / "digits.safetensors").write_bytes(data)
    (HOME / "digits.listing").write_bytes(listing.encode())
    (HOME / "digits.manifest").write_bytes(seal_manifest(manifest, key))
    print(f"{len(data)} bytes, {DigitsNet(weights).parameters} parameters, {digest_text(listing.root)}")
    print(f"owner {key.id}")


if __name__ == "__main__":
    sys.exit(main())
