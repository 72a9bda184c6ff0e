"""`gpt2 tokenizer`: train a vocabulary, and show the tokens of a text."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli.help import HelpCommand, HelpGroup
from gpt2cli.cli.options import (
    BlankLineOption,
    EncodingOption,
    JsonOption,
    MaxBadOption,
    PerLineOption,
    SplitOnOption,
    TextFieldOption,
    prompt_text,
)
from gpt2cli.errors import UsageError
from gpt2cli.paths import expand
from gpt2cli.ui.console import aligned, err, out, print_json, print_result, printable, say

if TYPE_CHECKING:
    from gpt2cli.tokenizer.base import Tokenizer

app = typer.Typer(cls=HelpGroup, help="Train a vocabulary; show how one cuts a text.")
MOST_ROWS = 1000  # of a table for people


@app.command(cls=HelpCommand)
def train(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="Files, folders or globs, as in gpt2 prepare.")
    ],
    out: Annotated[Path, typer.Option("--out", parser=expand, metavar="PATH", help="Output folder.")],
    size: Annotated[int, typer.Option(help="Tokens of the vocabulary, with <|endoftext|>.")] = 8192,
    text_field: TextFieldOption = None,
    split_on: SplitOnOption = None,
    per_line: PerLineOption = False,
    blank_line: BlankLineOption = False,
    encoding: EncodingOption = None,
    max_bad: MaxBadOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier vocabulary in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a byte-level BPE vocabulary: GPT-2's kind, with merges trained on your text.

    The folder is a Hugging Face tokenizer. Use it as --tokenizer FOLDER in gpt2 prepare, or as
    data.tokenizer=FOLDER in gpt2 pretrain.
    """
    from gpt2cli.data.byte_source import read_options
    from gpt2cli.data.manifest import PrepareSettings
    from gpt2cli.data.text_fields import TEXT
    from gpt2cli.data.vocabulary import train_tokenizer
    from gpt2cli.tokenizer.bpe import BPE
    from gpt2cli.tokenizer.files import load_tokenizer
    from gpt2cli.ui.progress import finish, preparing

    started = time.monotonic()
    options = read_options(encoding, max_bad)
    settings = PrepareSettings(
        tokenizer=f"bpe-{size}",
        text_fields=tuple(text_field or TEXT),
        validation=0.0,
        encoding=options.encoding,
        max_bad=options.max_bad,
        split_on=split_on or "",
        per_line=per_line,
        blank_line=blank_line,
    )
    steps = train_tokenizer(sources, size, out, settings, stdin_is_records=bool(text_field), force=force)
    last = finish(steps, err(), preparing())
    tokenizer = load_tokenizer(out)
    assert isinstance(tokenizer, BPE)
    seconds = time.monotonic() - started
    n_merges = len(tokenizer.merges)
    say(
        f"Done: {tokenizer.n_vocab:,} tokens, {n_merges:,} of them merges, from {last.n_bytes / 1e6:,.1f} MB"
        f" of text; {seconds:.1f} s.",
        "good",
    )
    facts = {"out": str(out), "tokens": tokenizer.n_vocab, "merges": n_merges, "bytes": last.n_bytes}
    print_result(as_json, {**facts, "seconds": round(seconds, 3)}, out)


@app.command(cls=HelpCommand)
def show(
    text: Annotated[str | None, typer.Argument(help="The text; - or a pipe: stdin.")] = None,
    tokenizer: Annotated[
        str, typer.Option(metavar="TOKENIZER", help="gpt2, a tokenizer folder, a run or a model.")
    ] = "gpt2",
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", parser=expand, metavar="PATH", help="Read the text from a file."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the tokens of a text: ids, bytes, and how many per word beside GPT-2's."""
    from gpt2cli.tokenizer.bpe import gpt2

    content = prompt_text(text, file)
    if not content:
        raise UsageError("there is no text to show", fix='gpt2 tokenizer show "Every effort moves you"')
    own = _find(tokenizer)
    ids, n_words, n_bytes = own.encode(content), len(content.split()), len(content.encode("utf-8", "replace"))
    n_gpt2 = len(gpt2().encode(content))
    per_word = [n / max(n_words, 1) for n in (len(ids), n_gpt2)]
    if as_json:
        pieces = [(id, own.decode_bytes([id])) for id in ids]
        facts = {
            "tokens": [
                {"id": id, "text": data.decode("utf-8", "replace"), "bytes": [*data]} for id, data in pieces
            ],
            "vocabulary": own.n_vocab,
            "n_tokens": len(ids),
            "n_words": n_words,
            "n_bytes": n_bytes,
            "tokens_per_word": per_word[0],
            "gpt2": {"n_tokens": n_gpt2, "tokens_per_word": per_word[1]},
        }
        print_json(facts)
        return
    _print_table(own, ids)
    out().print(
        f"{len(ids):,} tokens for {n_words:,} words and {n_bytes:,} bytes: {per_word[0]:.2f} per word,"
        f" {n_bytes / max(len(ids), 1):.2f} bytes each, of a vocabulary of {own.n_vocab:,};"
        f" GPT-2: {n_gpt2:,} tokens, {per_word[1]:.2f} per word",
        soft_wrap=True,
    )


def _print_table(tokenizer: "Tokenizer", ids: list[int]) -> None:
    from gpt2cli.ui.inspect import token_text

    rows = [
        (str(id), token_text(tokenizer, id), tokenizer.decode_bytes([id]).hex(" ")) for id in ids[:MOST_ROWS]
    ]
    for line in aligned([("id", "token", "bytes"), *rows], right=(0,)):
        out().print(printable(line), soft_wrap=True, markup=False, highlight=False)
    if len(ids) > MOST_ROWS:
        say(f"note: the first {MOST_ROWS:,} of {len(ids):,} tokens; --json has all", "faint")


def _find(name: str) -> "Tokenizer":
    """GPT-2's, that of a folder, or of a run or model of this name."""
    from gpt2cli import paths
    from gpt2cli.convert.vocabulary import tokenizer_files
    from gpt2cli.tokenizer.base import is_made_of_text
    from gpt2cli.tokenizer.bpe import gpt2
    from gpt2cli.tokenizer.files import load_tokenizer

    folder = paths.expand(name)
    if name == "gpt2":
        return gpt2()
    if is_made_of_text(name) and not folder.is_dir():
        raise UsageError(
            f"{name}: is made from a text, so there is one per text",
            "a run, a model and a prepared folder hold theirs",
            "--tokenizer runs/NAME",
        )
    return load_tokenizer(folder if tokenizer_files(folder) else paths.find_model(name))
