"""`gpt2 convert`: a model of any known format in, the path of the converted one on stdout."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gpt2cli.cli.options import JsonOption
from gpt2cli.errors import counted
from gpt2cli.paths import expand, find_model, model_path
from gpt2cli.ui.console import err, print_result, say


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, file or zip of a GPT-2 from OpenAI, Hugging Face, nanoGPT, llm.c or"
            " LLMs-from-scratch; or one of your own runs or models.",
        ),
    ],
    to: Annotated[
        Literal["folder", "gguf", "nanogpt", "tensorflow"],
        typer.Option("--to", help="Output format; folder is a Hugging Face folder, as gpt2 uses."),
    ] = "folder",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=expand,
            metavar="PATH",
            help="Output path; by default a model named after the source, or a file in the current folder.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"],
        typer.Option("--dtype", help="Number format; q8_0 only in gguf, where biases and norms stay f32."),
    ] = "f32",
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing output.")] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the logits with a NumPy reference that reads the source's tensors; by default on"
            " for models that gpt2 did not write.",
        ),
    ] = None,
    n_head: Annotated[
        int | None, typer.Option("--n-head", help="Number of heads, if the checkpoint does not store it.")
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Convert even if weights are NaN or infinite.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Merge a LoRA adapter into its base model.")] = False,
    push_to: Annotated[
        str | None,
        typer.Option("--push-to", metavar="OWNER/NAME", help="Upload the result to the Hugging Face hub."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a GPT-2 from or to another format.

    The result is verified. Prints the largest difference of logits, and what was kept or left out, to stderr.
    """
    from gpt2cli.checkpoints.provenance import RECEIPT
    from gpt2cli.convert.pipeline import ConvertOptions, convert
    from gpt2cli.ui.progress import converting, finish
    from gpt2cli.ui.tables import print_receipt

    if push_to:
        from gpt2cli.hub.hf_hub import require_upload

        require_upload(push_to)
    path = _find(source)
    place = out or _default_place(path, to)
    card = _card(path, push_to or place.name)
    options = ConvertOptions(to, dtype, force, verify, allow_nonfinite, n_head, merge, card)
    receipt = finish(convert(path, place, options), err(), converting).receipt
    if not as_json:
        kept = place / RECEIPT
        print_receipt(receipt, err(), str(kept) if kept.is_file() else "--json prints them")
        if made := receipt.get("modelfile"):
            say(f"for Ollama: {shlex.join(['ollama', 'create', place.stem, '-f', made])}")
        elif to == "gguf":
            say("the Modelfile that lies beside it is left as it is; --force replaces both", "warn")
    if push_to:
        receipt["uploaded_to"] = _push(place, push_to, receipt)
    print_result(as_json, receipt, place)


def _find(source: str) -> Path:
    """The path as typed, or else the run or model of that name."""
    path = expand(source)
    return path if path.exists() or path.is_symlink() else find_model(source)


def _card(path: Path, name: str) -> str:
    """The model card of a run or model that was trained here."""
    from gpt2cli.paths import best_checkpoint, is_run
    from gpt2cli.training.model_card import model_card

    folder = best_checkpoint(path) if is_run(path) else path
    return model_card(folder, name) if folder.is_dir() else ""


def _push(place: Path, repository: str, receipt: dict[str, Any]) -> str:
    """Upload the folder, or the file with what lies beside it; returns the repository's address."""
    from gpt2cli.hub.hf_hub import upload
    from gpt2cli.ui.spinner import waiting

    if place.is_dir():
        files = {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}
    else:
        beside = [Path(made)] if (made := receipt.get("modelfile")) else []
        files = {path.name: path for path in (place, *beside)}
    places = [place] if place.is_dir() else files.values()
    again = " && ".join(shlex.join(["hf", "upload", repository, str(path)]) for path in places)
    n_bytes = sum(path.stat().st_size for path in files.values())
    say(f"uploading {counted(len(files), 'file')}, {n_bytes / 1e6:,.1f} MB, to {repository}")
    with waiting(err(), f"uploading to {repository}"):
        address = upload(files, repository, again)
    say(f"uploaded: {address}")
    return address


def _default_place(path: Path, to: str) -> Path:
    """A model named after its source; other formats go to the current folder."""
    from gpt2cli.convert.output_folder import default_name
    from gpt2cli.convert.pipeline import TARGETS

    _, ending = TARGETS[to]
    return model_path(default_name(path)) if to == "folder" else Path(f"{default_name(path)}{ending}")
