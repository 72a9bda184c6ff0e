"""A model that says a given text, so that the output of a command is known without a reference."""

from pathlib import Path

import torch
from words import WORDS

from gpt2cli.checkpoints.folder import write_manifest, write_model
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.base import Tokenizer

CONTEXT = 64


def save_model_that_says(
    folder: Path, text: str, tokenizer: Tokenizer = WORDS, n_positions: int = CONTEXT
) -> Path:
    """A model folder whose likeliest token at place p is token p of `text`, then end-of-text.

    Only positions matter: the blocks are zero, token embeddings are small and unit vectors apart
    from their size, and a position's embedding points at the token to say.
    """
    config = GPT2Config(n_layer=1, n_head=1, n_embd=32, n_positions=n_positions, vocab_size=tokenizer.n_vocab)
    model = GPT2LMHead(config)
    targets = [*tokenizer.encode(text), tokenizer.end_of_text]
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()
        tokens = torch.randn(config.vocab_size, 32, generator=torch.Generator().manual_seed(0))
        tokens -= tokens.mean(dim=-1, keepdim=True)
        tokens /= tokens.norm(dim=-1, keepdim=True)
        model.transformer.wte.weight.copy_(tokens)
        cycle = torch.tensor([targets[p % len(targets)] for p in range(n_positions)])
        model.transformer.wpe.weight.copy_(1000 * tokens[cycle])
    folder.mkdir(parents=True)
    write_manifest(folder, write_model(folder, model, tokenizer, "task: pretrain\n"))
    return folder
