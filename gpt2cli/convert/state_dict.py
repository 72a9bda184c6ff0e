"""State dicts of PyTorch modules without their config, read by a table of names.

Most have nn.Linear's matrices, (out, in). The tables, and what else such a file holds, are in
`nanogpt.py`, `llms_from_scratch.py`, `llm_c.py` and, for Hugging Face's names, here.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2cli.checkpoints.folder import EMBEDDING, HEAD, MASKS, TRANSPOSED, require_tensors, stored_shapes
from gpt2cli.convert.foreign_model import (
    LAYER,
    ForeignModel,
    ForeignTensor,
    RawTensors,
    as_array,
    expand_blocks,
    same_bits,
)
from gpt2cli.convert.torch_file import floating_tensors
from gpt2cli.convert.unwrap_checkpoint import bare_names, drop_heads
from gpt2cli.convert.vocabulary import tokenizer_for
from gpt2cli.errors import InputError, counted
from gpt2cli.model.config import GPT2Config

POSITIONS = "transformer.wpe.weight"
HEAD_WIDTH = 64  # channels, in each of OpenAI's models
JOIN = " + "
ZEROS = "zeros"  # instead of a source name
_MAX_BLOCKS, _MAX_WIDTH = 1000, 1 << 20  # torch would take minutes for the shapes of more, or overflow


@dataclass(frozen=True)
class StateDictFormat:
    """How a format spells a GPT-2: {Hugging Face's name: its own}, with "{}" for the block's number."""

    format: str
    table: Mapping[str, str]  # what is joined is "a + b + c", each with "{0}"
    masks: re.Pattern[str]  # buffers that hold no weights
    optional: re.Pattern[str]  # biases that a model may lack, all of them together
    optional_are: str  # "" where a model lacks none
    out_first: bool = True  # matrices are nn.Linear's, (out, in), not Hugging Face's


@dataclass(frozen=True)
class StateDict:
    """The tensors of a checkpoint by their bare names, and what these were before."""

    path: Path
    layout: StateDictFormat
    tensors: dict[str, Any]  # without masks
    originals: dict[str, str]  # {bare name: name in the file}
    n_masks: int
    notes: tuple[str, ...]  # about what was left out


@dataclass(frozen=True)
class InferredSizes:
    """A model's sizes by its shapes. `n_rows` are those of the embedding, tokens or padding."""

    n_layer: int
    n_embd: int
    n_positions: int
    n_rows: int


def parse_state_dict(path: Path, layout: StateDictFormat, state: Mapping[Any, Any]) -> StateDict:
    """The tensors of `state`, wrappers, mask buffers and second heads taken away. InputError for a clash."""
    for original in state:
        if not isinstance(original, str):
            raise InputError(f"{path}: has an entry {original!r}", "tensors have names")
    names = bare_names(path, state)
    notes = drop_heads(names)
    masks = [name for name in names if layout.masks.fullmatch(name)]
    for name in masks:
        del names[name]
    head, embedding = layout.table[HEAD], layout.table[EMBEDDING]
    if head in names and embedding not in names:  # safetensors.torch.save_model keeps one name of a matrix
        names[embedding] = names.pop(head)
    tensors = {name: state[original] for name, original in names.items()}
    return StateDict(path, layout, tensors, names, len(masks), tuple(notes))


def infer_sizes(state: StateDict) -> InferredSizes:
    """The model's sizes, from the embeddings and the number of blocks. Raises InputError without them."""
    shapes = []
    for target in (EMBEDDING, POSITIONS):
        name = state.layout.table[target]
        tensor = state.tensors.get(name)
        if not isinstance(tensor, Tensor) or tensor.dim() != 2:
            raise InputError(f"{state.path}: {name} is not a matrix", "the tensors are not those of a GPT-2")
        shapes.append(tuple(tensor.shape))
    (n_rows, n_embd), (n_positions, _) = shapes
    # "transformer.h.{}." or the like
    before, _, _ = next(own for own in state.layout.table.values() if LAYER in own).partition(LAYER)
    block = re.compile(rf"{re.escape(before)}(\d+)\.")
    n_layer = len({match[1] for name in state.tensors if (match := block.match(name))})
    if not 1 <= n_layer <= _MAX_BLOCKS or not 1 <= n_embd <= _MAX_WIDTH:
        raise InputError(
            f"{state.path}: {n_layer} blocks of width {n_embd}", "the tensors are not those of a GPT-2"
        )
    return InferredSizes(n_layer, n_embd, n_positions, n_rows)


# The modules of a GPT-2, in Hugging Face's and nanoGPT's words, each with a weight and a bias.
_MODULES = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
NAMES = (
    EMBEDDING,
    POSITIONS,
    *(f"transformer.h.{LAYER}.{module}.{part}" for module in _MODULES for part in ("weight", "bias")),
    "transformer.ln_f.weight",
    "transformer.ln_f.bias",
    HEAD,
)
HUGGING_FACE = StateDictFormat(
    format="huggingface",
    table={name: name for name in NAMES},
    masks=MASKS,
    optional=re.compile(r"(?!)"),  # none
    optional_are="",
    out_first=False,
)


def infer_heads(path: Path, n_head: int | None, n_embd: int) -> tuple[int, list[str]]:
    """The number of heads, which no shape shows: what the user says, else 64 channels each; and a note."""
    if n_head is None:
        if n_embd % HEAD_WIDTH:
            raise InputError(
                f"{path}: the number of attention heads is not in the file",
                f"GPT-2's {HEAD_WIDTH} channels per head do not divide the model's {n_embd}",
                f"gpt2 convert {path} --n-head N",
            )
        n_head = n_embd // HEAD_WIDTH
        return n_head, [
            f"the file does not say how many heads attention has: {n_head} are assumed, {HEAD_WIDTH} channels"
            " each as in GPT-2; --n-head N sets another number"
        ]
    if n_head < 1 or n_embd % n_head:
        raise InputError(
            f"{path}: {n_head} attention heads do not divide {n_embd} channels",
            "each head takes an equal share",
            f"--n-head {max(1, n_embd // HEAD_WIDTH)}",
        )
    return n_head, [f"{n_head} attention heads, as --n-head says"]


@contextlib.contextmanager
def open_bare(
    path: Path, layout: StateDictFormat, tensors: Mapping[str, Any], n_head: int | None, notes: list[str]
) -> Iterator[ForeignModel]:
    """The model of tensors alone, whose number of heads nothing else tells. Raises as `open_state_dict`."""
    state = parse_state_dict(path, layout, tensors)
    n_head, about_heads = infer_heads(path, n_head, infer_sizes(state).n_embd)
    with open_state_dict(state, n_head, 0.0, [*notes, *about_heads]) as source:
        yield source


@contextlib.contextmanager
def open_state_dict(
    state: StateDict, n_head: int, dropout: float, notes: list[str]
) -> Iterator[ForeignModel]:
    """The model of a state dict, every tensor accounted for. Its memory is freed at the end.

    Raises InputError that names the tensors where they are not those of a GPT-2.
    """
    path, layout, size = state.path, state.layout, infer_sizes(state)
    tokenizer, files, about_tokens = tokenizer_for(path, size.n_rows)
    found = floating_tensors(path, state.tensors)
    state.tensors.clear()
    head = layout.table[HEAD]
    tied = head not in found or same_bits(found[head], found[layout.table[EMBEDDING]])
    config = GPT2Config(
        size.n_layer,
        n_head,
        size.n_embd,
        size.n_positions,
        size.n_rows,
        None,
        dropout,
        tie_word_embeddings=tied,
    )
    table = expand_blocks(layout.table, size.n_layer)
    has_optional = not layout.optional_are or any(layout.optional.fullmatch(name) for name in found)
    wanted = _own_shapes(config, table, out_first=layout.out_first)
    if not has_optional:
        wanted = {name: shape for name, shape in wanted.items() if not layout.optional.fullmatch(name)}
    if head in found:
        wanted[head] = (size.n_rows, size.n_embd)
    require_tensors(path, wanted, {name: tuple(tensor.shape) for name, tensor in found.items()})
    config = replace(config, vocab_size=tokenizer.n_vocab)
    named = {state.originals[name]: tensor for name, tensor in found.items()}
    try:
        yield ForeignModel(
            path=path,
            format=layout.format,
            config=config,
            tokenizer=tokenizer,
            tensors={
                target: _source_tensor(target, shape, table[target], state, named)
                for target, shape in stored_shapes(config).items()
            },
            raw=RawTensors(tuple(named), lambda name: as_array(named[name])),
            files=(path, *files),
            notes=(*_about(state, tied=tied, without=not has_optional), *about_tokens, *notes),
        )
    finally:
        found.clear()
        named.clear()


def _own_shapes(
    config: GPT2Config, table: Mapping[str, str], *, out_first: bool
) -> dict[str, tuple[int, ...]]:
    """The format's own names and shapes; of joined tensors, each has an equal part of the rows."""
    shapes = {}
    for target, shape in stored_shapes(config).items():
        if out_first and target.endswith(TRANSPOSED):
            shape = shape[::-1]
        parts = table[target].split(JOIN)
        shapes.update(dict.fromkeys(parts, (shape[0] // len(parts), *shape[1:])))
    return shapes


def _source_tensor(
    target: str,
    shape: tuple[int, ...],
    own: str,
    state: StateDict,
    tensors: Mapping[str, Tensor],
) -> ForeignTensor:
    names = [state.originals[part] for part in own.split(JOIN) if part in state.originals]
    transposed = state.layout.out_first and target.endswith(TRANSPOSED)

    def load() -> Tensor:
        if not names:
            return torch.zeros(shape, dtype=next(iter(tensors.values())).dtype)
        parts = [tensors[name] for name in names]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        # Rows beyond the vocabulary are padding; elsewhere the slice takes all there is.
        return (tensor.T if transposed else tensor)[: shape[0]].contiguous()

    return ForeignTensor(JOIN.join(names) or ZEROS, shape, transposed, load)


def _about(state: StateDict, *, tied: bool, without: bool) -> Iterator[str]:
    yield from state.notes
    if state.n_masks:
        yield f"left out: {counted(state.n_masks, 'mask buffer')}, without weights"
    if without:
        yield f"the model has no {state.layout.optional_are}: zeros are written"
    if not tied:
        yield f"{state.layout.table[HEAD]} is not the token embedding: the model keeps a head of its own"
