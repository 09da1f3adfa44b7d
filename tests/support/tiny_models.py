"""Tiny models of the transformers library, made here from a seed, saved as their makers save real ones."""

from __future__ import annotations

import json
from pathlib import Path

CORPUS = [
    "Once upon a time there was a little peer who knew no centre.",
    "It asked its neighbours, and they asked theirs: who can tell a story?",
    "Ein Käfer saß müde auf dem Ast. Das Öl ist grün. 日本語も話します。",
]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if tools %}<|tools|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CARD = """---
license: apache-2.0
language:
- en
- de
tags: [tiny, Story-Teller, "not a tag!"]
pipeline_tag: text-generation
base_model: acme/base
model_name: Tiny Teller
---
# Tiny Teller
"""


def save_tokenizer(folder: Path, template: str | None = TEMPLATE) -> int:
    """A byte-level tokenizer, so that characters come in pieces; gives the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    if template is not None:
        fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


def save_llama(folder: Path, *, context: int = 256, template: str | None = TEMPLATE, steps: int = 80) -> Path:
    """A Llama of 100,000 weights that knows the texts of CORPUS by heart, after a second of training."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    size = save_tokenizer(folder, template)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lines = [f"<|user|>Hello<|end|><|assistant|>{CORPUS[0]}</s>", *(f"{line}</s>" for line in CORPUS)]
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other with so little to do
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


def save_bert(folder: Path, *, labels: tuple[str, ...] = (), seed: int = 1) -> Path:
    """A small BERT: an encoder, or with `labels` a classifier."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    size = save_tokenizer(folder, None)
    names = dict(enumerate(labels or ("LABEL_0", "LABEL_1")))
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        id2label=names,
        label2id={name: n for n, name in names.items()},
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    (BertForSequenceClassification(config) if labels else BertModel(config)).save_pretrained(folder)
    return folder


def as_sentence_transformer(folder: Path, *, pooling: str = "mean_tokens", normalise: bool = True) -> None:
    """What sentence-transformers writes beside an encoder."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")] + (
        [("Normalize", "2_Normalize")] if normalise else []
    )
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
