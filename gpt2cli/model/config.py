"""The numbers that define a GPT-2, and their Hugging Face spelling (config.json).

How they are used is in `layers.py` and `gpt2.py`.
"""

from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from gpt2cli.errors import InputError


@dataclass(frozen=True)
class GPT2Config:
    """Field names are Hugging Face's. Raises InputError if the numbers contradict each other."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # C, the width of the residual stream
    n_positions: int = 1024  # the longest context; learned positions end there
    vocab_size: int = 50257
    n_inner: int | None = None  # width of the MLP; None is 4 * n_embd
    dropout: float = 0.0  # for embeddings, attention and residuals, in training only
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True  # the output layer is the token embedding, as OpenAI trained it

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "mlp_width"):
            if getattr(self, name) < 1:
                raise InputError(f"config: {name} is {getattr(self, name)}", "it must be at least 1")
        if self.n_embd % self.n_head:
            raise InputError(
                f"config: n_head {self.n_head} does not divide n_embd {self.n_embd}",
                "each head takes an equal share of the channels",
            )

    @property
    def head_width(self) -> int:
        """D, channels per head."""
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def n_parameters(self) -> int:
        """Parameters of the language model; a shared output layer counts once."""
        C, M = self.n_embd, self.mlp_width
        attention = C * 3 * C + 3 * C + C * C + C
        mlp = C * M + M + M * C + C
        block = attention + mlp + 4 * C  # two LayerNorms, weight and bias
        head = 0 if self.tie_word_embeddings else self.vocab_size * C
        return (self.vocab_size + self.n_positions) * C + self.n_layer * block + 2 * C + head


# Radford et al. 2019, table 2; the parameter counts are those of the published files.
PRESETS: dict[str, GPT2Config] = {
    "124M": GPT2Config(n_layer=12, n_head=12, n_embd=768),
    "355M": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "774M": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "1558M": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}

# The fields that determine the names and shapes of the weights.
_shape = attrgetter(
    "n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "mlp_width", "tie_word_embeddings"
)


def size_of(config: GPT2Config) -> str | None:
    """Which of OpenAI's models has this shape, "124M" and the like; dropout and epsilon do not count."""
    same = (size for size, preset in PRESETS.items() if _shape(preset) == _shape(config))
    return next(same, None)


_HF_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
# What layers.py implements; any other value in a config.json describes another model.
_FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
# Beyond these a config.json is damaged: modules would be built for it.
_LARGEST = {"n_layer": 1000, "n_head": 1000, "vocab_size": 2**25}


def to_hugging_face(config: GPT2Config) -> dict[str, Any]:
    """The content of config.json for GPT2LMHeadModel, without the ids of special tokens."""
    values = asdict(config)
    dropout = values.pop("dropout")
    return {
        "architectures": ["GPT2LMHeadModel"],
        **_FIXED,
        **values,
        "n_ctx": config.n_positions,
        **dict.fromkeys(_HF_DROPOUTS, dropout),
        "torch_dtype": "float32",
    }


def from_hugging_face(values: dict[str, Any]) -> GPT2Config:
    """Read a config.json from any program. Raises InputError for a model that is not GPT-2."""
    for name, ours in _FIXED.items():
        theirs = values.get(name, ours)
        if theirs != ours:
            raise _wrong(name, theirs, f"GPT-2 as it is built here has {name} {ours!r}")
    known = {name: values[name] for name in GPT2Config.__dataclass_fields__ if name in values}
    for name, value in known.items():
        if name == "n_inner" and value is None:
            continue
        if name == "tie_word_embeddings":
            if not isinstance(value, bool):
                raise _wrong(name, value, "true or false is needed here")
            continue
        small = name in ("layer_norm_epsilon", "initializer_range")
        if not isinstance(value, (int, float) if small else int) or isinstance(value, bool):
            raise _wrong(name, value, "a number is needed here")
        if small and not 0 < value < 1:
            raise _wrong(name, value, "a number between 0 and 1 is needed here")
        if value > _LARGEST.get(name, 2**20):
            raise _wrong(name, value, "no model is that large")
    dropout = values.get("resid_pdrop", 0.0)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise _wrong("resid_pdrop", dropout, "a rate from 0 to 1 is needed here")
    return GPT2Config(**{**known, "dropout": float(dropout)})


def _wrong(name: str, value: object, why: str) -> InputError:
    return InputError(f"config.json: {name} is {value!r}"[:200], why)
