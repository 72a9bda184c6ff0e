"""What programs put around a GPT-2's tensors: a table around the state dict, words before its names, heads.

The files of Lightning, DeepSpeed, DistributedDataParallel, torch.compile, FSDP and trl wrap the usual names;
this file strips the wrappers. Names that stay unknown are refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt2cli.checkpoints.folder import SECOND_HEAD
from gpt2cli.errors import InputError

# Where the state dict lies in what was saved: Lightning's, DeepSpeed's, the book's, other loops'.
TABLES = ("state_dict", "module", "model_state_dict", "model")
# Parts of a name that stand for a wrapper, wherever they are.
_WRAPPERS = {
    *("module", "model", "base_model", "pretrained_model", "_orig_mod", "_forward_module"),
    *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
}
# The name of a tensor that every GPT-2 has; what stands before it, the attribute of another module,
# stands before the others too.
_ANCHOR = re.compile(r"(.+\.)(?:transformer\.wte\.weight|lm_head\.weight|tok_emb\.weight)")
_BODY = re.compile(r"(?:wte|wpe|ln_f|h\.\d+)\.")  # of GPT2Model, saved without "transformer."
BODY_PREFIX = "transformer."
# Heads beside the language model's, which writes without them.
HEADS = {"v_head": "trl's value head", "multiple_choice_head": "GPT2DoubleHeadsModel's multiple-choice head"}


def unwrap_table(loaded: Any) -> Any:
    """The innermost table of tensors in what torch.save stored; anything else as it is."""
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in TABLES if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    return loaded


def bare_names(path: Path | str, names: Iterable[str]) -> dict[str, str]:
    """{name without wrappers: name in the file}; Hugging Face's all begin as GPT2LMHeadModel has them.

    Raises InputError if two names become one.
    """
    originals = list(names)
    found = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in originals]
    prefix = next((match[1] for name in found if (match := _ANCHOR.fullmatch(name))), "")
    found = [name.removeprefix(prefix) for name in found]
    if not any(name.startswith(BODY_PREFIX) for name in found):
        found = [BODY_PREFIX + name if _BODY.match(name) else name for name in found]
    bare: dict[str, str] = {}
    for name, original in zip(found, originals, strict=True):
        if name in bare:
            raise InputError(f"{path}: {original!r} and {bare[name]!r} are the same tensor's name")
        bare[name] = original
    return bare


def drop_heads(names: dict[str, str]) -> list[str]:
    """Take the names of second heads out of `bare_names`' table; a note for each head."""
    heads = [match[1] for name in list(names) if (match := SECOND_HEAD.match(name)) and names.pop(name)]
    return [f"{HEADS[head]} was left out, {n} of the tensors" for head, n in Counter(heads).items()]
