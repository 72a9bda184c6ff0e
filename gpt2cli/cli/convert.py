"""Owns `gpt2 convert`: a model of any known format in, the place of the converted one on stdout."""

from pathlib import Path
from typing import Annotated

import typer

from gpt2cli.cli.options import JsonOption


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, file or zip with a GPT-2 of OpenAI, Hugging Face, nanoGPT or LLMs-from-scratch;"
            " or a run or model of yours by name.",
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="folder, gguf, nanogpt or tensorflow.")] = "folder",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="What to make; otherwise a model of the source's name, or a file of that name here.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="f32, f16 or bf16; q8_0 for gguf. Biases and norms stay f32 in gguf."),
    ] = "f32",
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare with an independent computation on the source's tensors; otherwise done for"
            " models that are not from here.",
            show_default=False,
        ),
    ] = None,
    n_head: Annotated[
        int | None,
        typer.Option("--n-head", help="Heads, for a source that does not say.", show_default=False),
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Convert weights that hold NaN or infinity.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add an adapter into its base: a whole model comes out.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a GPT-2 in from elsewhere, or take one there, with a proof that it is the same model.

    The receipt says where each tensor comes from and how far the two models' logits are apart.
    """

    from gpt2cli.convert.pipeline import ConvertOptions, convert
    from gpt2cli.ui.console import err, print_json, printable
    from gpt2cli.ui.console import out as stdout
    from gpt2cli.ui.convert import print_receipt, show_converting

    wish = ConvertOptions(to, dtype, force, verify, allow_nonfinite, n_head, merge)
    path = _find(source)
    place = out.expanduser() if out else _default_place(path, to)
    receipt = show_converting(convert(path, place, wish), err())
    if as_json:
        print_json(receipt)
        return
    print_receipt(receipt, err())
    if to == "gguf":
        _say_modelfile(place, receipt["config"]["n_positions"])
    stdout().print(printable(str(place)))


def _find(source: str) -> Path:
    """The path as typed, else a run or a model of that name."""
    from gpt2cli.paths import find_model

    path = Path(source).expanduser()
    return path if path.exists() or path.is_symlink() else find_model(source)


def _say_modelfile(gguf: Path, n_positions: int) -> None:
    """How Ollama takes the file: three lines that the user can copy."""
    from gpt2cli.convert.gguf import modelfile
    from gpt2cli.ui.console import err, printable

    lines = modelfile(gguf.name, n_positions)
    err().print(printable(f"for Ollama, put this into a file called Modelfile beside it:\n{lines}"))


def _default_place(path: Path, to: str) -> Path:
    """A model under the name of its source; a file or folder of other people's goes to the current one."""
    from gpt2cli.convert.pipeline import TARGETS
    from gpt2cli.convert.placing import default_name
    from gpt2cli.paths import model_path

    _, ending = TARGETS[to]
    return model_path(default_name(path)) if to == "folder" else Path(f"{default_name(path)}{ending}")
