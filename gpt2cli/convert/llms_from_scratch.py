"""Checkpoints of GPTModel from the book "Build a Large Language Model (From Scratch)", reading only.

Raschka's module (rasbt/LLMs-from-scratch, ch04) keeps query, key and value apart, may leave out their
biases, and has an output head of its own. Its LayerNorm and its GELU are GPT-2's: 1e-5, and tanh.
"""

from re import compile

from gpt2cli.convert.state_dict import StateDictFormat

TOKENS = "tok_emb.weight"
_PARTS = ("W_query", "W_key", "W_value")
LAYOUT = StateDictFormat(
    format="llms-from-scratch",
    table={
        "transformer.wte.weight": TOKENS,
        "transformer.wpe.weight": "pos_emb.weight",
        "transformer.h.{}.ln_1.weight": "trf_blocks.{}.norm1.scale",
        "transformer.h.{}.ln_1.bias": "trf_blocks.{}.norm1.shift",
        "transformer.h.{}.attn.c_attn.weight": " + ".join(f"trf_blocks.{{0}}.att.{p}.weight" for p in _PARTS),
        "transformer.h.{}.attn.c_attn.bias": " + ".join(f"trf_blocks.{{0}}.att.{p}.bias" for p in _PARTS),
        "transformer.h.{}.attn.c_proj.weight": "trf_blocks.{}.att.out_proj.weight",
        "transformer.h.{}.attn.c_proj.bias": "trf_blocks.{}.att.out_proj.bias",
        "transformer.h.{}.ln_2.weight": "trf_blocks.{}.norm2.scale",
        "transformer.h.{}.ln_2.bias": "trf_blocks.{}.norm2.shift",
        "transformer.h.{}.mlp.c_fc.weight": "trf_blocks.{}.ff.layers.0.weight",
        "transformer.h.{}.mlp.c_fc.bias": "trf_blocks.{}.ff.layers.0.bias",
        "transformer.h.{}.mlp.c_proj.weight": "trf_blocks.{}.ff.layers.2.weight",
        "transformer.h.{}.mlp.c_proj.bias": "trf_blocks.{}.ff.layers.2.bias",
        "transformer.ln_f.weight": "final_norm.scale",
        "transformer.ln_f.bias": "final_norm.shift",
        "lm_head.weight": "out_head.weight",
    },
    masks=compile(r"trf_blocks\.\d+\.att\.mask"),
    optional=compile(r"trf_blocks\.\d+\.att\.W_(?:query|key|value)\.bias"),
    optional_are="biases of query, key and value",
)
