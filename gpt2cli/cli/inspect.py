"""`gpt2 inspect`: a model in; its modules, tensors and activations out."""

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.choose_model import find_folder
from gpt2cli.cli.options import JsonOption, ModelArgument, encode_prompt
from gpt2cli.errors import InputError, UsageError, counted
from gpt2cli.json_files import finite_json
from gpt2cli.paths import CHECKPOINTS, expand
from gpt2cli.ui.console import err, print_json, say
from gpt2cli.ui.spinner import load_torch

if TYPE_CHECKING:
    from gpt2cli.checkpoints.info import ModelInfo, TensorInfo
    from gpt2cli.generation.activations import ForwardTrace, NextToken
    from gpt2cli.model.config import GPT2Config
    from gpt2cli.tokenizer.base import Tokenizer
    from gpt2cli.training.lineage import Lineage

N_NEXT = 10
NEEDS = {"--attention": "--prompt", "--top": "--prompt", "--layer": "--attention", "--head": "--attention"}
EXAMPLES = {"--prompt": '"The capital of France is"', "--attention": "attention.png"}


def inspect(
    model: ModelArgument = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Show mean, std, min and max of each tensor.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            help="Show a forward pass over this text: probabilities, activations, logit lens.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            "--top", min=1, help="With --prompt: how many next tokens to show.", show_default=str(N_NEXT)
        ),
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(
            "--attention",
            parser=expand,
            metavar="PATH",
            help="With --prompt: draw the attention weights to a PNG file.",
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", help="With --attention: draw only this layer, from 0.")
    ] = None,
    head: Annotated[
        int | None, typer.Option("--head", help="With --attention: draw only this head, from 0.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is made of, and what it computes.

    Modules, memory, tokenizer and origin; with options tensors, activations and attention.
    Reads the weights only with --tensors or --prompt.
    """
    from gpt2cli.checkpoints.finite import bad_logits
    from gpt2cli.checkpoints.info import read_model_info
    from gpt2cli.generation.activations import next_tokens
    from gpt2cli.training.lineage import read_lineage
    from gpt2cli.ui import inspect as inspecting

    _check_options(prompt, top, attention, layer, head)
    folder = find_folder(model)
    summary = read_model_info(folder)
    picture = _plan_picture(summary.config, attention, layer, head)
    numbers = _numbers(summary) if tensors else []
    anatomy: ForwardTrace | None = None
    lens: list[list[list[NextToken]]] = []
    if prompt is not None:
        anatomy, lens = _watch(folder, prompt, picture is not None, None if as_json else 1, top or N_NEXT)
    likeliest = next_tokens(anatomy.logits, top or N_NEXT) if anatomy else []
    if picture and anatomy:
        _draw(picture, anatomy, summary)
    if as_json:
        _print_json(summary, read_lineage(folder), numbers, anatomy, likeliest, lens, picture)
    elif not tensors and anatomy is None:
        inspecting.show_summary(summary, read_lineage(folder))
    if tensors and not as_json:
        inspecting.show_tensors(summary, numbers)
    if anatomy and not as_json:
        inspecting.show_prompt(summary, anatomy, likeliest, [block[-1] for block in lens])
    if anatomy and not likeliest:
        raise bad_logits("", f"gpt2 inspect --tensors {shlex.quote(str(folder))}")


@dataclass(frozen=True)
class _Picture:
    """The picture that --attention draws."""

    path: Path
    layers: range
    heads: range


def _check_options(
    prompt: str | None, top: int | None, attention: Path | None, layer: int | None, head: int | None
) -> None:
    """Raise UsageError for options that do not go together, before any file is opened."""
    given = {"--prompt": prompt, "--attention": attention, "--top": top, "--layer": layer, "--head": head}
    for option, needed in NEEDS.items():
        if given[option] is not None and given[needed] is None:
            raise UsageError(f"{option} needs {needed}", fix=f"{needed} {EXAMPLES[needed]}")
    if attention is not None and attention.suffix.lower() != ".png":
        raise UsageError(f"--attention {attention}: the picture is a PNG", fix=f"--attention {attention}.png")


def _plan_picture(
    config: "GPT2Config", path: Path | None, layer: int | None, head: int | None
) -> _Picture | None:
    """The picture to draw, checked against the model and the disk."""
    from gpt2cli.files import require_writable

    if path is None:
        return None
    chosen = []
    for name, number, n in (("layer", layer, config.n_layer), ("head", head, config.n_head)):
        if number is not None and not 0 <= number < n:
            raise UsageError(f"--{name} is {number}", f"this model has {name}s 0 to {n - 1}")
        chosen.append(range(n) if number is None else range(number, number + 1))
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"{path}: is not a regular file", "a picture would replace it")
    require_writable(path.parent)
    return _Picture(path, *chosen)


def _numbers(summary: "ModelInfo") -> "list[TensorInfo]":
    """The statistics of every tensor; aligned columns need all of them first."""
    from gpt2cli.checkpoints.info import tensor_statistics
    from gpt2cli.ui.progress import counting, track

    n = sum(summary.dtypes.values())
    return list(track(tensor_statistics(summary), err(), counting("reading the weights", n)))


def _watch(
    folder: Path, prompt: str, draw: bool, n_lens: int | None, top: int
) -> "tuple[ForwardTrace, list[list[list[NextToken]]]]":
    """One forward pass over the prompt, with the attention of as many tokens as a picture holds; and the
    logit lens of the last `n_lens` positions, or of all.
    """
    load_torch()
    import torch

    from gpt2cli.convert.open_model import open_model
    from gpt2cli.generation.activations import logit_lens, trace_forward
    from gpt2cli.ui.attention_map import MOST_TOKENS

    loaded = open_model(folder, attention="formula")
    ids = encode_prompt(prompt, loaded, "give a shorter prompt")
    n_streams = len(ids) if n_lens is None else n_lens
    anatomy = trace_forward(loaded.model, torch.tensor([ids]), MOST_TOKENS if draw else 0, n_streams)
    return anatomy, logit_lens(loaded.model, anatomy.streams, top)


def _draw(picture: _Picture, anatomy: "ForwardTrace", summary: "ModelInfo") -> None:
    from gpt2cli.ui.attention_map import draw_attention
    from gpt2cli.ui.inspect import token_text

    n_drawn = anatomy.attention.shape[-1]
    ids = anatomy.ids[len(anatomy.ids) - n_drawn :]
    tokens = [token_text(summary.tokenizer, token).removeprefix("b")[1:-1] for token in ids]
    layers, heads = picture.layers, picture.heads
    weights = anatomy.attention[layers.start : layers.stop, heads.start : heads.stop]
    draw_attention(
        weights.numpy(),
        tokens,
        picture.path,
        layers=layers,
        heads=heads,
        title=f"{_name(summary.folder)}: attention weights",
        prompt=summary.tokenizer.decode(anatomy.ids),
        n_before=len(anatomy.ids) - n_drawn,
    )
    if n_drawn < len(anatomy.ids):
        say(
            f"the prompt has {len(anatomy.ids)} tokens: the picture shows the last {n_drawn}, and"
            " not their attention to earlier ones",
            "warn",
        )
    n = f"{counted(len(layers), 'layer')} x {counted(len(heads), 'head')}"
    say(f"attention: {n} in {picture.path}", "good")


def _name(folder: Path) -> str:
    """RUN/STEP for a checkpoint of a run."""
    path = folder.resolve()
    run = path.parent.parent.name if path.parent.name == CHECKPOINTS else ""
    return f"{run}/{path.name}" if run else path.name


def _print_json(
    summary: "ModelInfo",
    lineage: "Lineage",
    numbers: "list[TensorInfo]",
    anatomy: "ForwardTrace | None",
    likeliest: "list[NextToken]",
    lens: "list[list[list[NextToken]]]",
    picture: _Picture | None,
) -> None:
    """One object. NaN and infinity become null."""
    verified = bool(numbers) or anatomy is not None
    content = _model(summary, verified) | {
        "lineage": asdict(lineage) | {"run": lineage.run and str(lineage.run)}
    }
    if numbers:
        content["tensors"] = [asdict(tensor) for tensor in numbers]
    if anatomy:
        content["prompt"] = _pass(summary.tokenizer, anatomy, likeliest, lens)
    if picture and anatomy:
        content["attention"] = {
            "path": str(picture.path),
            "layers": list(picture.layers),
            "heads": list(picture.heads),
            "tokens_drawn": anatomy.attention.shape[-1],
        }
    print_json(finite_json(content))  # a broken model has NaN


def _model(summary: "ModelInfo", verified: bool) -> dict[str, Any]:
    from gpt2cli.checkpoints.info import nearest_size

    size, other = nearest_size(summary.config) or (None, ())
    n, manifest, tokenizer = summary.config.n_positions, summary.manifest, summary.tokenizer
    widths = {"fp32": 4, "bf16": 2}
    return {
        "folder": str(summary.folder),
        "size": size,
        "differs_in": list(other),
        "config": asdict(summary.config),
        "parameters": summary.n_parameters,
        "modules": [
            asdict(module) | {"share": module.n_parameters / summary.n_parameters}
            for module in summary.modules
        ],
        "weights": {
            "file_bytes": summary.n_bytes,
            "dtypes": summary.dtypes,
            "memory_bytes": {name: summary.weight_bytes(width) for name, width in widths.items()},
        },
        "kv_cache": {
            "token_bytes": {name: summary.cache_bytes(width) for name, width in widths.items()},
            "context_bytes": {name: summary.cache_bytes(width, n) for name, width in widths.items()},
        },
        "tokenizer": {
            "kind": tokenizer.name,
            "tokens": tokenizer.n_vocab,
            "end_of_text": tokenizer.end_of_text,
            "special": asdict(tokenizer.special),
            "fingerprint": tokenizer.fingerprint,
        },
        "manifest": manifest and asdict(manifest) | {"weights_verified": verified},
    }


def _pass(
    tokenizer: "Tokenizer",
    anatomy: "ForwardTrace",
    likeliest: "list[NextToken]",
    lens: "list[list[list[NextToken]]]",
) -> dict[str, Any]:
    def token(number: int, probability: float | None) -> dict[str, Any]:
        data = tokenizer.decode_bytes([number])
        text = data.decode("utf-8", "replace")
        return {"id": number, "text": text, "bytes": data.hex(), "probability": probability}

    def listed(candidates: "list[NextToken]") -> list[dict[str, Any]]:
        return [token(candidate.id, candidate.probability) for candidate in candidates]

    chances = [None, *anatomy.probabilities]  # nothing precedes the first
    return {
        "tokens": [token(id, chance) for id, chance in zip(anatomy.ids, chances, strict=True)],
        "activations": [asdict(activation) for activation in anatomy.activations],
        "next": listed(likeliest),
        "lens": [[listed(position) for position in block] for block in lens],
    }
