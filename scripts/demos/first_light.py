"""Five peers, no server: models are found by task, called, and survive the death of a provider.

Alice is only somebody's known address. Bob and Carol serve the same digit classifier, Dave a language
identifier that is a plain Python function. Erin knows Alice's address and nothing else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from demos.stage import Answer, Stage
from processes import COMMAND, Failed, Line, PeerProcess, Troupe

HERE = Path(__file__).resolve().parent
VISION, TEXT = "image-classification", "text-classification"
LEVELS = "0123456789abcdefg"  # a pixel is 0 (paper) to 16 (ink)
SHADES = " .:-=+*#%@"

# Proverbs that are not among the sentences that the identifier learned from.
PROVERBS = {
    "Waar het hart vol van is, loopt de mond van over.": "nl",
    "Quien mucho abarca, poco aprieta.": "es",
    "Borta bra men hemma bäst.": "sv",
}


class Digits(NamedTuple):
    """Ten handwritten digits of the UCI set that the classifier was not trained on, one of each class."""

    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]  # [10, 8, 8], 0 to 16
    labels: list[int]

    @classmethod
    def read(cls) -> Digits:
        digits = json.loads((HERE / "digits.json").read_text(encoding="utf-8"))
        images = [[[LEVELS.index(pixel) for pixel in row] for row in digit["rows"]] for digit in digits]
        return cls(np.array(images, dtype=np.float32), [digit["label"] for digit in digits])

    def drawn(self, which: slice) -> list[str]:
        """Those digits as text, side by side: a line for each of eight rows, two characters a pixel."""
        shades = np.array(list(SHADES))[(self.images[which] * (len(SHADES) - 1) / 16).astype(int)]
        return ["  ".join("".join(np.repeat(row, 2)) for row in line) for line in shades.transpose(1, 0, 2)]


def play(stage: Stage) -> None:
    """Everything in order; raises Failed where a step does not do what it should."""
    digits = Digits.read()
    with Troupe() as troupe:
        image_file = troupe.folder / "digits.npy"
        np.save(image_file, digits.images)
        erin = gather(stage, troupe)
        publish(stage, troupe)
        find(stage, troupe, erin, TEXT, {"dave"})
        find(stage, troupe, erin, VISION, {"bob", "carol"})
        for proverb, language in PROVERBS.items():
            identify(stage, troupe, erin, proverb, language)
        for line in digits.drawn(slice(0, 5)):
            stage.say(f"[dim]{line}[/]")
        first = classify(stage, troupe, erin, image_file, digits.labels)
        victim = next(peer for peer in troupe.peers.values() if peer.id == first)
        with stage.step(f"kill -9 {victim.name}, who answered (pid {victim.process.pid})"):
            victim.kill()
        second = classify(stage, troupe, erin, image_file, digits.labels)
        if second == first:
            raise Failed(f"{victim.name} was killed and still answered")
    stage.say("")
    command = os.path.relpath(COMMAND) if COMMAND.is_relative_to(Path.cwd()) else COMMAND
    stage.say("Now yours, in two terminals:")
    stage.say(f"  {command} join --publish builtin:digits")
    stage.say(f"  {command} find --task {VISION}")


def gather(stage: Stage, troupe: Troupe) -> PeerProcess:
    """All five join, all but Alice by her address; gives Erin."""
    with stage.step("alice joins, the first of a network of her own"):
        (alice,) = troupe.start("alice")
    stage.say(f"[dim]{alice.address}[/]")
    with stage.step("bob, carol, dave and erin join; all that they know is that address"):
        erin = troupe.start("bob", "carol", "dave", "erin", bootstrap=[alice.address])[-1]
    stage.names.update({peer.id: name for name, peer in troupe.peers.items()})
    return erin


def publish(stage: Stage, troupe: Troupe) -> None:
    language = ("languages:identify", "--model", "demo/language-id", "--task", TEXT)
    for name, words in (("bob", ("builtin:digits",)), ("carol", ("builtin:digits",)), ("dave", language)):
        with stage.step(f"{name} publishes {words[0]}"):
            (line,) = troupe.ask(troupe.peers[name], "publish", *words, cwd=HERE)
        holders = line["holders"]
        stage.say(f"{line['model']}: its record is signed, {holders['stored']} other peers hold it")


def find(stage: Stage, troupe: Troupe, erin: PeerProcess, task: str, providers: set[str]) -> None:
    """Erin asks the DHT who can do `task`, and must be told exactly these."""
    with stage.step(f"erin asks who can do {task}"):
        offers = troupe.ask(erin, "find", "--task", task)
    for offer in offers:
        rtt = offer["rtt_ms"]
        near = f", {rtt:.1f} ms away" if rtt is not None else ""
        stage.say(f"{offer['model']} at {stage.name(offer['provider'])}: {offer['state']}{near}")
    found = {stage.names.get(str(offer["provider"]), "a stranger") for offer in offers}
    if found != providers:
        raise Failed(f"{', '.join(sorted(providers))} offer {task}, found: {', '.join(sorted(found))}")


def identify(stage: Stage, troupe: Troupe, erin: PeerProcess, proverb: str, language: str) -> None:
    done = troupe.ask(erin, "invoke", f"task:{TEXT}", proverb)[-1]
    guess = done["output"][0]
    right = guess["label"] == language
    shown = f"{proverb!r} is {guess['label']} ({guess['score']:.2f})"
    stage.answer(answer(done, TEXT, correct=right), shown)


def classify(stage: Stage, troupe: Troupe, erin: PeerProcess, images: Path, labels: list[int]) -> str:
    """Erin has the digits read by whoever answers first; gives the provider's id."""
    done = troupe.ask(erin, "invoke", f"task:{VISION}", "--input", images)[-1]
    read = done["output"]["label"]
    again = f" (attempt {done['attempts']})" if done["attempts"] > 1 else ""
    shown = f"ten unseen digits read as {' '.join(map(str, read))}{again}"
    given = answer(done, VISION, correct=read == labels)
    stage.answer(given, shown)
    return given.provider


def answer(done: Line, task: str, *, correct: bool) -> Answer:
    """An `invoke` command's last line as an answer."""
    return Answer(done["model"], task, done["provider"], round(done["ms"]["total"], 1), correct)
