"""A model to begin a fine-tune with, as transformers writes it, over single characters."""

import shutil
from pathlib import Path
from typing import Any

import torch
from plain_loop import Example
from tiny_run import Call
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

LETTERS = "".join(map(chr, range(32, 127))) + "\n"


def save_base(gpt2: Call, folder: Path, *, context: int = 96, tied: bool = True, **changes: Any) -> Path:
    """Random weights of standard deviation 0.2, biases too, so that nothing begins at zero. `changes` are of
    the config.
    """
    Path("letters.txt").write_text(LETTERS * 3, encoding="utf-8")
    outcome = gpt2("prepare", "letters.txt", "--out", "letters", "--tokenizer", "chars", "--block", "8")
    assert outcome.code == 0, outcome.err
    config = GPT2Config(
        **{"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": context},
        **{"vocab_size": len(LETTERS) + 1, "tie_word_embeddings": tied},
        **{"bos_token_id": len(LETTERS), "eos_token_id": len(LETTERS)},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} | changes,
    )
    draw = torch.Generator().manual_seed(3)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=draw)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("letters") / name, folder)
    return folder


def chat_example(folder: Path, record: dict[str, str], *, mask_prompt: bool = True) -> Example:
    """A record in the template `chat`, its tokens by transformers: the answer and its end are targets."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = f"\n\n{record['input']}" if record.get("input") else ""
    prompt = tokenizer(f"User:\n{record['instruction']}{given}\n\nAssistant:\n")["input_ids"]
    answer = [*tokenizer(record["output"])["input_ids"], tokenizer.eos_token_id]
    hidden = [-100] * (len(prompt) - 1) if mask_prompt else prompt[1:]
    return Example([*prompt, *answer][:-1], [*hidden, *answer])
