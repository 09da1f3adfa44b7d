"""A tiny Llama in a GGUF file, made here from a seed: it knows one story by heart.

The tokens of its story have vectors at right angles, all others share one; the last layer gives each token
the one that follows it, by so much that a greedy call always takes that, and a draw mostly. Attention is
there, but whispers: what came before changes how likely a token is, and not which one is best.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_writer import write_gguf

RULE = "=" * 40  # one token: longer than what the library has room for where it turns tokens into text
STORY = f" Once upon a time some peers met é😀{RULE} without any centre."
SPACE = "\u2581"  # as this kind of tokenizer writes it
TICKS = " tick tock"  # for ever
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if tools %}<|tools|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{{ start | default('') }}{% endif %}"
)
SIZE, HIDDEN, HEADS, LAYERS = 64, 96, 4, 2
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
UNK, BOS, EOS = 0, 1, 2
WHISPER = 0.02
GAIN = 1.0  # of the next token before all others; times the root of SIZE it is what its logit is above theirs


def _pieces(text: str) -> list[str]:
    """The tokens that make up `text`: words with the space before them, the long rule, else bytes."""
    found: list[str] = []
    for part in text.replace(" ", f" {SPACE}").replace(RULE, f" {RULE} ").split(" "):
        if part.removeprefix(SPACE).isascii():
            found += [part] if part else []
        else:
            found += [SPACE, *(f"<0x{byte:02X}>" for byte in part.removeprefix(SPACE).encode())]
    return found


def _vocabulary() -> tuple[list[str], list[int]]:
    tokens, kinds = ["<unk>", "<s>", "</s>"], [UNKNOWN, CONTROL, CONTROL]
    for name in ("<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|tools|>"):
        tokens.append(name)
        kinds.append(CONTROL)
    story = _pieces(STORY) + _pieces(TICKS)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    for token in [*dict.fromkeys(story), *bytes_]:
        if token not in tokens:
            tokens.append(token)
            kinds.append(BYTE if token in bytes_ else NORMAL)
    letters = [chr(code) for code in range(33, 127)] + [SPACE]
    beginnings = [word[:length] for word in story for length in range(2, len(word)) if word[0] == SPACE]
    for token in dict.fromkeys([*letters, *beginnings]):
        if token not in tokens:
            tokens.append(token)
            kinds.append(NORMAL)
    return tokens, kinds


def _alphabet() -> list[str]:
    """A letter for each byte, as byte-level tokenizers write them: printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def save_byte_pairs(path: Path, *, template: str = "", context: int = 200) -> Path:
    """The same story, in tokens of a byte-level tokenizer with merges, as most models of today have; nothing
    stands before a text there."""
    letters = _alphabet()

    def written(piece: str) -> str:
        if piece.startswith("<0x"):
            return letters[int(piece[3:5], 16)]
        return "".join(letters[byte] for byte in piece.replace(SPACE, " ").encode())

    story, ticks = ([written(piece) for piece in _pieces(text)] for text in (STORY, TICKS))
    beginnings = [word[:length] for word in story + ticks for length in range(2, len(word) + 1)]
    names = ["</s>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>", "<|tools|>"]
    longer = list(dict.fromkeys(beginnings))
    tokens = [*names, *letters, *longer]
    kinds = [CONTROL] * len(names) + [NORMAL] * (len(tokens) - len(names))
    fields: dict[str, object] = _shape(context) | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [np.int32(kind) for kind in kinds],
        "tokenizer.ggml.merges": [f"{token[:-1]} {token[-1]}" for token in longer],
        "tokenizer.ggml.eos_token_id": 0,
    }
    if template:
        fields["tokenizer.chat_template"] = template
    return write_gguf(path, fields, _tensors(tokens, story, ticks))


def _shape(context: int) -> dict[str, object]:
    return {
        "general.architecture": "llama",
        "llama.context_length": context,
        "llama.embedding_length": SIZE,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS // 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": SIZE // HEADS,
    }


def save_tiny_gguf(path: Path, *, template: str = "", context: int = 200, **more: object) -> Path:
    """`template`: of its chats; `more`: fields of the header, `__` in their names stands for a dot."""
    tokens, kinds = _vocabulary()
    fields: dict[str, object] = _shape(context) | {
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        "general.languages": ["en"],
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(at) for at in range(len(tokens))],
        "tokenizer.ggml.token_type": [np.int32(kind) for kind in kinds],
        "tokenizer.ggml.unknown_token_id": UNK,
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.add_bos_token": True,
    }
    if template:
        fields["tokenizer.chat_template"] = template
    fields |= {name.replace("__", "."): value for name, value in more.items()}
    return write_gguf(path, fields, _tensors(tokens, _pieces(STORY), _pieces(TICKS)))


def _tensors(tokens: list[str], story: list[str], ticks: list[str]) -> dict[str, NDArray[np.float32]]:
    place = {token: at for at, token in enumerate(tokens)}
    vectors = np.zeros((len(tokens), SIZE), np.float32)
    vectors[:, -1] = 1
    follow = dict(zip(story, [*story[1:], "</s>"], strict=True)) | dict(zip(ticks, ticks[::-1], strict=True))
    follow["<|assistant|>"] = story[0]
    assert len(follow) < SIZE
    for at, token in enumerate(follow):
        vectors[place[token]] = np.eye(SIZE)[at]
    output = np.zeros_like(vectors)
    output[place["</s>"], -1] = GAIN  # after all others
    for token, then in follow.items():
        output[place[then]] += GAIN * vectors[place[token]]
    rng = np.random.default_rng(1)

    def small(*shape: int) -> NDArray[np.float32]:
        return (WHISPER * rng.standard_normal(shape)).astype(np.float32)

    ones = np.ones(SIZE, np.float32)
    found = {"token_embd.weight": vectors, "output_norm.weight": ones, "output.weight": output}
    for layer in range(LAYERS):
        found |= {
            f"blk.{layer}.{name}.weight": array
            for name, array in {
                "attn_norm": ones,
                "attn_q": small(SIZE, SIZE),
                "attn_k": small(SIZE // 2, SIZE),
                "attn_v": small(SIZE // 2, SIZE),
                "attn_output": small(SIZE, SIZE),
                "ffn_norm": ones,
                "ffn_gate": small(HIDDEN, SIZE),
                "ffn_up": small(HIDDEN, SIZE),
                "ffn_down": small(SIZE, HIDDEN),
            }.items()
        }
    return found
