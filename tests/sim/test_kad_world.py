"""A thousand peers in virtual time, with delay, loss and the dead: do walks find the true closest?"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from random import Random

import pytest

from modelnet_p2p.dht.simulator import Node, Simulator, Weather

SEED = 20_26


@dataclass(frozen=True)
class Result:
    recall: float
    worst: float
    hops: list[int]
    messages: list[int]
    seconds: list[float]
    digest: str

    def __str__(self) -> str:
        hops, messages = statistics.quantiles(self.hops, n=20), statistics.quantiles(self.messages, n=20)
        seconds = statistics.quantiles(self.seconds, n=20)
        return (
            f"recall {self.recall:.4f} (worst {self.worst:.2f}), hops p50 {hops[9]:.0f} p95 {hops[18]:.0f}, "
            f"messages p50 {messages[9]:.0f} p95 {messages[18]:.0f}, "
            f"seconds p50 {seconds[9]:.1f} p95 {seconds[18]:.1f}"
        )


def settle(rng: Random, size: int, loss: float) -> tuple[Simulator, list[Node]]:
    """Peers join one by one, half a second apart, each through one that is there already."""
    world = Simulator(rng, weather=Weather(loss=loss))
    nodes = [world.add()]
    for _ in range(size - 1):
        node = world.add()
        world.join(node, [rng.choice(nodes)])
        nodes.append(node)
        world.run(world.now + 0.5)
    world.run()
    for node in nodes:  # one refresh of the farthest bucket and of its own place, as after any join
        for key in (node.table.refresh_key(0, rng.randbytes(8)), bytes(node.id)):
            world.start(node, world.closest_walk(node, key))
    world.run()
    return world, nodes


def measure(size: int, walks: int, *, seed: int = SEED, loss: float = 0.01, dead: float = 0.2) -> Result:
    """Walks towards random keys, right after a share of the peers fell silent at once."""
    rng = Random(seed)
    world, nodes = settle(rng, size, loss)
    for node in nodes:
        node.alive = rng.random() >= dead
    alive = [node for node in nodes if node.alive]
    recalls, runs = list[float](), []
    for _ in range(walks):
        node, key = rng.choice(alive), rng.randbytes(34)
        walk = world.closest_walk(node, key)
        runs.append(world.start(node, walk))
        world.run()
        truth = set(world.closest_alive(key, world.tuning.k)) - {node.id}
        recalls.append(len(truth & set(walk.closest)) / len(truth))
    return Result(
        statistics.mean(recalls),
        min(recalls),
        [run.walk.hops for run in runs],
        [run.walk.messages for run in runs],
        [run.seconds for run in runs],
        world.digest,
    )


@pytest.mark.parametrize(("size", "walks"), [(200, 100), pytest.param(500, 200, marks=pytest.mark.slow)])
def test_walks_find_the_true_closest_among_the_living(size: int, walks: int) -> None:
    result = measure(size, walks)
    print(f"\n{size} peers, 1 % loss, 20 % dead, seed {SEED}: {result}")
    assert result.recall >= 0.99
    assert max(result.hops) <= 7
    assert statistics.median(result.messages) <= 60


def test_the_same_seed_is_the_same_world() -> None:
    first, again, other = (measure(40, 10, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.digest != other.digest
