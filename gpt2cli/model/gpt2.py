"""GPT-2 as a whole: the transformer, its two heads, and weight initialization.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Pure torch: no files,
no loss, no sampling. Shapes use the letters of `layers.py`, and V for the vocabulary.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2cli.model.config import GPT2Config
from gpt2cli.model.layers import (
    Block,
    Dropout,
    Embedding,
    KVCache,
    Linear,
    OutputLayer,
    Rotation,
    rotation,
)


class GPT2(nn.Module):
    """The transformer: token ids in, one vector of C channels per position out."""

    def __init__(self, config: GPT2Config, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)  # token embedding, (V, C)
        if config.positions == "learned":
            self.wpe = Embedding(config.n_positions, config.n_embd)  # position embedding, (n_positions, C)
        self.dropout = Dropout(config.dropouts["embd_pdrop"])
        self.h = nn.ModuleList(Block(config, layer, attention) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        # In training: store only each block's input, and run the block again in the backward pass.
        self.activation_checkpointing = False

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        n_last: int | None = None,
    ) -> Tensor:
        """Hidden states (B, T, C) of input_ids (B, T), the last LayerNorm applied.

        With a cache the ids continue what the cache holds. `positions` (B, T) and `mask`
        (B, 1, T, S) are for rows of unequal length; without them a row starts at position 0 (or
        where the cache ends) and attention is causal. With `n_last` only the states of the last positions
        are returned, (B, n_last, C): of the others the last block computes keys and values alone.
        """
        start = 0 if cache is None else cache.length
        end = start + input_ids.shape[1]
        if positions is None:
            positions = torch.arange(start, end, device=input_ids.device)  # (T,)
        x = self.wte(input_ids)  # (B, T, C)
        if self.config.positions == "learned":
            x = x + self.wpe(positions)
        x, rotation = self.dropout(x), self.rotation(positions)
        for layer, block in enumerate(self.h, 1):
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, cache, mask, rotation, use_reentrant=False)
            else:
                x = block(x, cache, mask, rotation, n_last if layer == len(self.h) else None)
        if cache is not None:
            cache.length = end
        return self.ln_f(x)  # type: ignore[no-any-return]  # (B, T, C), or (B, n_last, C)

    def rotation(self, positions: Tensor) -> Rotation | None:
        """What every block rotates its queries and keys by; None with learned positions."""
        return rotation(positions, self.config.head_width) if self.config.positions == "rotary" else None


class GPT2LMHead(nn.Module):
    """GPT-2 as a language model: a hidden state times the token embedding gives the next token's logits."""

    def __init__(self, config: GPT2Config, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.transformer = GPT2(config, attention)
        self.lm_head = OutputLayer(config.n_embd, config.vocab_size, bias=False)
        self.cache_dtype: torch.dtype | None = None  # of keys and values; None is that of the weights
        self.tie()

    def tie(self) -> None:
        """Tie lm_head to wte. Call again after either weight is replaced."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) in fp32: those at position t are for the token after it."""
        return self.lm_head(self.transformer(input_ids, cache, positions, mask))  # type: ignore[no-any-return]

    def new_cache(self, n_rows: int, n_positions: int) -> KVCache:
        """An empty cache for at least that many positions."""
        config, weight = replace(self.config, n_positions=n_positions), self.transformer.ln_f.weight
        return KVCache(config, n_rows, like=weight.new_empty(0, dtype=self.cache_dtype))

    def extend(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Append input_ids (B, T), rows of one length, to the cache; logits of the next token, (B, V)."""
        return self.lm_head(self.transformer(input_ids, cache, n_last=1)[:, -1])  # type: ignore[no-any-return]


class GPT2Classifier(nn.Module):
    """GPT-2 as a classifier of texts: the last token's hidden state gives each class a logit.

    Only that position has seen the whole text. Hugging Face's GPT2ForSequenceClassification.
    """

    def __init__(self, config: GPT2Config, n_classes: int, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.transformer = GPT2(config, attention)
        self.score = Linear(config.n_embd, n_classes, bias=False)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, n_classes) of input_ids (B, T), whose rows end after `lengths` (B,) tokens.

        Padding on the right has no effect: attention is causal.
        """
        hidden = self.transformer(input_ids)  # (B, T, C)
        rows = torch.arange(len(lengths), device=hidden.device)
        return self.score(hidden[rows, lengths - 1])  # type: ignore[no-any-return]


def empty_model(config: GPT2Config, attention: str = "sdpa") -> GPT2LMHead:
    """A model on the meta device, without memory, for weights that come from elsewhere."""
    with torch.device("meta"):
        return GPT2LMHead(config, attention)


def empty_classifier(config: GPT2Config, n_classes: int, attention: str = "sdpa") -> GPT2Classifier:
    """The same with the other head."""
    with torch.device("meta"):
        return GPT2Classifier(config, n_classes, attention)


def new_model(config: GPT2Config, seed: int, attention: str = "sdpa") -> GPT2LMHead:
    """A fresh model on the CPU in fp32, ready to train; the same seed gives the same weights."""
    model = empty_model(config, attention).to_empty(device="cpu")
    model.tie()  # to_empty gave each name its own memory
    initialize(model, seed)
    return model


@torch.no_grad()
def initialize(model: GPT2LMHead, seed: int) -> None:
    """Fill every weight of a fresh model as OpenAI's code does, the same for the same seed.

    Matrices and token embedding: normal, standard deviation 0.02; position embedding: 0.01. The two
    projections of a block that write into the residual stream: 0.02 / sqrt(2 * n_layer), because
    2 * n_layer of them add up there. Biases 0; LayerNorm weights 1.

    The token embedding also gives the logits, which begin with variance C * 0.02^2. So the first
    loss is ln(V) + C * 0.02^2 / 2: 10.98 for 124M, 0.15 above a uniform guess.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, _standard_deviation(name, model.config), generator=generator)


def _standard_deviation(name: str, config: GPT2Config) -> float:
    if name.endswith("wpe.weight"):
        return config.initializer_range / 2
    if name.endswith("c_proj.weight"):
        return config.initializer_range / math.sqrt(2 * config.n_layer)
    return config.initializer_range
