"""Models that read texts whole: sentence encoders and classifiers, many texts in one pass.

An encoder that was saved by sentence-transformers says in modules.json how its vectors are made; that is done
here for the modules that are arithmetic (pooling, normalising, a dense layer). Any other encoder's vectors
are the mean of its last hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.pretrained.folder import MODULES, Folder, check_sound, read_json

Floats = NDArray[np.float32]
Step: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # hidden or vectors, mask -> vectors
Text: TypeAlias = str | tuple[str, str]  # a pair is read as two parts, as cross-encoders want it

MAX_TOKENS = 8192  # of a text where the model names no bound
POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text's tokens, as the model takes them: `input_ids` and what else belongs to them."""

    fields: Mapping[str, Sequence[int]]

    def __len__(self) -> int:
        return len(self.fields["input_ids"])


class Reader:
    """A model that reads texts whole, and its tokenizer. Used in the model's thread."""

    def __init__(self, model: Any, tokenizer: Any, context: int) -> None:
        # Any: what transformers makes has no types here
        self._model = model
        self._tokenizer = tokenizer
        self.context = context  # tokens; what is longer is cut off

    def tokens(self, texts: Sequence[Text]) -> list[Encoded]:
        firsts = [text if isinstance(text, str) else text[0] for text in texts]
        seconds = None if all(isinstance(text, str) for text in texts) else [_second(text) for text in texts]
        found = self._tokenizer(firsts, seconds, truncation=True, max_length=self.context, padding=False)
        names = [name for name in self._tokenizer.model_input_names if name in found]
        return [Encoded({name: found[name][row] for name in names}) for row in range(len(texts))]

    @torch.inference_mode()
    def run(self, texts: Sequence[Encoded]) -> tuple[Any, torch.Tensor]:
        """The model's output for texts of like length, and their mask."""
        inputs = self._tokenizer.pad(
            [dict(text.fields) for text in texts], padding=True, padding_side="right", return_tensors="pt"
        ).to(self._model.device)
        return self._model(**inputs, return_dict=True), inputs["attention_mask"]


def _second(text: Text) -> str:
    return "" if isinstance(text, str) else text[1]


class Encoder(Reader):
    """Texts become vectors."""

    def __init__(self, model: Any, tokenizer: Any, folder: Folder, context: int) -> None:
        super().__init__(model, tokenizer, context)
        self._steps = list(_steps(folder, model.device))
        self.width = self.encode(self.tokens(["a"])).shape[1]

    @torch.inference_mode()
    def encode(self, texts: Sequence[Encoded]) -> Floats:
        """float32 [texts, width]."""
        output, mask = self.run(texts)
        vectors = output.last_hidden_state.float()
        for step in self._steps:
            vectors = step(vectors, mask)
        found: Floats = vectors.float().cpu().numpy()
        return found


def _steps(folder: Folder, device: Any) -> Iterator[Step]:
    path = folder.path / MODULES
    if not path.is_file():
        yield _pooling({"pooling_mode_mean_tokens": True}, folder)
        return
    for entry in _modules(folder):
        kind, place = str(entry.get("type", "")).rpartition(".")[2], str(entry.get("path", ""))
        inside = folder.path / place
        if not inside.resolve().is_relative_to(folder.path.resolve()):
            raise LocalError(Code.UNSAFE, f"{path} names {place[:80]!r}, which lies outside of its directory")
        match kind:
            case "Transformer" if not place:
                pass
            case "Pooling":
                yield _pooling(read_json(inside / "config.json"), folder)
            case "Normalize":
                yield lambda vectors, mask: torch.nn.functional.normalize(vectors, dim=1)
            case "Dense":
                yield _dense(inside / "model.safetensors", read_json(inside / "config.json"), device)
            case _:
                words = f"{path} names a module {kind[:40]!r} in {place[:40]!r}, which is not served here"
                raise LocalError(Code.BAD_INPUT, words, hint="serve it by a function of your own")


def _modules(folder: Folder) -> Iterator[Mapping[str, object]]:
    from json import loads

    path = folder.path / MODULES
    try:
        found = loads(path.read_bytes()[: 1 << 20])
    except (OSError, ValueError, RecursionError) as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {error}") from error
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise LocalError(Code.BAD_INPUT, f"{path} is not a list of modules")
    yield from found


def _pooling(config: Mapping[str, object], folder: Folder) -> Step:
    """Several poolings stand side by side in the vector, in the order of POOLINGS."""
    chosen = [name for name in POOLINGS if config.get(f"pooling_mode_{name}")]
    if isinstance(word := config.get("pooling_mode"), str):  # newer files name the one
        chosen = [name for name in POOLINGS if name.removesuffix("_tokens").removesuffix("_token") == word]
    if not chosen:
        raise LocalError(Code.BAD_INPUT, f"{folder.path} pools its tokens in a way that is not served here")

    def step(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([_pooled(name, hidden, mask) for name in chosen], dim=1)

    return step


def _pooled(name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    count = weights.sum(1).clamp(min=1e-9)
    match name:
        case "cls_token":
            return hidden[:, 0]
        case "max_tokens":
            return hidden.masked_fill(weights == 0, -torch.inf).max(1).values
        case "mean_sqrt_len_tokens":
            return (hidden * weights).sum(1) / count.sqrt()
        case "lasttoken":
            last = mask.sum(1).long() - 1
            return hidden[torch.arange(len(hidden)), last]
    return (hidden * weights).sum(1) / count


def _dense(weights: Any, config: Mapping[str, object], device: Any) -> Step:
    word = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if word not in ACTIVATIONS or not weights.is_file():
        raise LocalError(
            Code.BAD_INPUT,
            f"the dense layer {weights.parent} has no safetensors, or an activation {word[:40]!r}",
            hint=f"served are safetensors and {', '.join(ACTIVATIONS)}",
        )
    check_sound(weights)
    tensors = load_file(weights, device=str(device))
    matrix, bias, activation = tensors["linear.weight"].float(), tensors.get("linear.bias"), ACTIVATIONS[word]

    def step(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return activation(torch.nn.functional.linear(vectors, matrix, None if bias is None else bias.float()))

    return step


class Classifier(Reader):
    """Texts get labels with scores."""

    def __init__(self, model: Any, tokenizer: Any, context: int) -> None:
        super().__init__(model, tokenizer, context)
        config = model.config
        self.labels = [str(config.id2label.get(n, f"LABEL_{n}")) for n in range(config.num_labels)]
        self._kind = config.problem_type or ""

    @torch.inference_mode()
    def classify(self, texts: Sequence[Encoded]) -> list[list[dict[str, object]]]:
        """For each text all labels, the best first."""
        output, _ = self.run(texts)
        logits = output.logits.float()
        if self._kind == "regression":
            scores = logits
        elif self._kind == "multi_label_classification" or len(self.labels) == 1:
            scores = torch.sigmoid(logits)
        else:
            scores = torch.softmax(logits, dim=1)
        return [
            [
                {"label": self.labels[n], "score": row[n]}
                for n in sorted(range(len(row)), key=lambda n: -row[n])
            ]
            for row in scores.cpu().tolist()
        ]
