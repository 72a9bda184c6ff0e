"""The numbers that define a GPT-2, and their Hugging Face spelling (config.json).

How they are used is in `layers.py` and `gpt2.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from typing import Any, Self

from gpt2cli.errors import InputError

# transformers' names of the two GELUs.
ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu": "gelu",
    "gelu_python": "gelu",
}
_KNOWN = f"known are {', '.join(ACTIVATIONS)}"
# config.json's model_type by the kind of positions. transformers has no GPT-2 with rotary ones: under a
# name that it does not know it refuses the folder, where "gpt2" would be loaded with random positions.
MODEL_TYPES = {"learned": "gpt2", "rotary": "gpt2cli-rotary"}
LANGUAGE_MODELS = {"learned": "GPT2LMHeadModel", "rotary": "GPT2RotaryLMHeadModel"}  # likewise
ROTARY_BASE = 10_000.0  # of the wavelengths of rotary positions


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
    # Not in the repr, which identifies runs that began before these fields were here.
    activation_function: str = field(default="gelu_new", repr=False)  # "gelu" is the exact one
    embd_pdrop: float | None = field(default=None, repr=False)  # for embeddings alone; None is `dropout`
    attn_pdrop: float | None = field(default=None, repr=False)  # for attention alone; None is `dropout`
    positions: str = field(default="learned", repr=False)  # or "rotary"

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "mlp_width"):
            if getattr(self, name) < 1:
                raise InputError(f"config: {name} is {getattr(self, name)}", "it must be at least 1")
        if self.n_embd % self.n_head:
            raise InputError(
                f"config: n_head {self.n_head} does not divide n_embd {self.n_embd}",
                "each head takes an equal share of the channels",
            )
        if self.activation_function not in ACTIVATIONS.values():
            raise InputError(f"config: activation_function is {self.activation_function}", _KNOWN)
        if self.positions not in MODEL_TYPES:
            raise InputError(f"config: positions is {self.positions}", f"known are {', '.join(MODEL_TYPES)}")
        if self.positions == "rotary" and self.head_width % 2:
            raise InputError(
                f"config: a head has {self.head_width} channels", "rotary positions rotate them in pairs"
            )

    @property
    def head_width(self) -> int:
        """D, channels per head."""
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def dropouts(self) -> dict[str, float]:
        """The three rates under Hugging Face's names."""
        embeddings = self.dropout if self.embd_pdrop is None else self.embd_pdrop
        attention = self.dropout if self.attn_pdrop is None else self.attn_pdrop
        return {"resid_pdrop": self.dropout, "embd_pdrop": embeddings, "attn_pdrop": attention}

    def with_dropout(self, rate: float) -> Self:
        """The same model with one rate for all three, as recipes have it."""
        return replace(self, dropout=rate, embd_pdrop=None, attn_pdrop=None)

    @property
    def n_parameters(self) -> int:
        """Parameters of the language model; a shared output layer counts once."""
        C, M = self.n_embd, self.mlp_width
        attention = C * 3 * C + 3 * C + C * C + C
        mlp = C * M + M + M * C + C
        block = attention + mlp + 4 * C  # two LayerNorms, weight and bias
        head = 0 if self.tie_word_embeddings else self.vocab_size * C
        return self.vocab_size * C + self.n_position_parameters + self.n_layer * block + 2 * C + head

    @property
    def n_position_parameters(self) -> int:
        """Of the position embedding, which rotary positions do without."""
        return self.n_positions * self.n_embd if self.positions == "learned" else 0


# Radford et al. 2019, table 2; the parameter counts are those of the published files.
PRESETS: dict[str, GPT2Config] = {
    "124M": GPT2Config(n_layer=12, n_head=12, n_embd=768),
    "355M": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "774M": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "1558M": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}

# The fields that a config.json has under the same names.
_NUMBERS = (
    *("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner"),
    *("layer_norm_epsilon", "initializer_range", "tie_word_embeddings"),
)
# Further names for some, which win in transformers where both are there.
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# The fields that determine the names and shapes of the weights.
_shape = attrgetter(
    *("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "mlp_width"),
    *("tie_word_embeddings", "positions"),
)


def size_of(config: GPT2Config) -> str | None:
    """Which of OpenAI's models has this shape, "124M" and the like; dropout and epsilon do not count."""
    same = (size for size, preset in PRESETS.items() if _shape(preset) == _shape(config))
    return next(same, None)


_DROPOUT = 0.1  # each rate that a config.json leaves out, as in transformers
# What layers.py implements; any other value in a config.json describes another model.
_FIXED = {"add_cross_attention": False}
# Further factors of attention's scores, which a conversion multiplies into the query's weights.
_SCALES = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
# Only the order of the operations, and the precision of one.
_NUMERICS = {"reorder_and_upcast_attn": False}
_OTHERS = "gpt2 download --list"  # models that can be read
_TYPES = " or ".join(map(repr, MODEL_TYPES.values()))
# Beyond these a config.json is damaged: modules would be built for it.
_LARGEST = {"n_layer": 1000, "n_head": 1000, "vocab_size": 2**25}


def to_hugging_face(config: GPT2Config) -> dict[str, Any]:
    """The content of config.json for GPT2LMHeadModel, without the ids of special tokens.

    With rotary positions its names are our own: no other program must take the model for a GPT-2.
    """
    values = asdict(config)
    positions = values.pop("positions")
    del values["dropout"]
    return {
        "architectures": [LANGUAGE_MODELS[positions]],
        "model_type": MODEL_TYPES[positions],
        **({"rope_theta": ROTARY_BASE} if positions == "rotary" else {}),
        **_FIXED,
        **_SCALES,
        **_NUMERICS,
        **values,
        "n_ctx": config.n_positions,
        **config.dropouts,
        "torch_dtype": "float32",
    }


def from_hugging_face(values: dict[str, Any], *, to_convert: bool = False) -> GPT2Config:
    """Read a config.json from any program. Raises InputError for a model that is not GPT-2.

    `to_convert`: the factors of `score_scales` are taken care of by the caller.
    """
    model_type = values.get("model_type", MODEL_TYPES["learned"])
    positions = next((kind for kind, name in MODEL_TYPES.items() if name == model_type), None)
    if positions is None:
        raise _wrong("model_type", model_type, f"GPT-2 as it is built here has {_TYPES}", _OTHERS)
    fixed = _FIXED | ({"rope_theta": ROTARY_BASE} if positions == "rotary" else {})
    for name, ours in (fixed if to_convert else fixed | _SCALES).items():
        theirs = values.get(name, ours)
        if theirs != ours:
            raise _wrong(name, theirs, f"GPT-2 as it is built here has {name} {ours!r}", _OTHERS)
    values = {**values, **{ours: values[name] for name, ours in _ALIASES.items() if name in values}}
    known = {name: values[name] for name in _NUMBERS if name in values}
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
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise _wrong("activation_function", activation, _KNOWN, _OTHERS)
    rates = {name: values.get(name, _DROPOUT) for name in GPT2Config().dropouts}
    for name, rate in rates.items():
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 <= rate < 1:
            raise _wrong(name, rate, "a rate from 0 to 1 is needed here")
    dropout = rates["resid_pdrop"]
    return GPT2Config(
        **known,
        dropout=float(dropout),
        activation_function=ACTIVATIONS[activation],
        embd_pdrop=None if rates["embd_pdrop"] == dropout else float(rates["embd_pdrop"]),
        attn_pdrop=None if rates["attn_pdrop"] == dropout else float(rates["attn_pdrop"]),
        positions=positions,
    )


def score_scales(values: Mapping[str, Any], config: GPT2Config) -> tuple[float, ...]:
    """By what each block of a config.json's model multiplies attention's scores, 1 / sqrt(D) aside.

    Empty where nothing does, as in GPT-2. Raises InputError if a setting is neither true nor false.
    """
    settings = {name: values.get(name, ours) for name, ours in _SCALES.items()}
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false is needed here")
    if settings == _SCALES:
        return ()
    width = 1.0 if settings["scale_attn_weights"] else math.sqrt(config.head_width)
    by_layer = settings["scale_attn_by_inverse_layer_idx"]
    return tuple(width / (layer + 1 if by_layer else 1) for layer in range(config.n_layer))


def _wrong(name: str, value: object, why: str, fix: str = "") -> InputError:
    return InputError(f"config.json: {name} is {value!r}"[:200], why, fix)
