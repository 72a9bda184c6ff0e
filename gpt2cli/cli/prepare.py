"""`gpt2 prepare`: texts in, a folder of token shards out; its path on stdout."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.options import (
    BlankLineOption,
    EncodingOption,
    JsonOption,
    MaxBadOption,
    PerLineOption,
    SplitOnOption,
    TextFieldOption,
)
from gpt2cli.errors import counted
from gpt2cli.paths import expand
from gpt2cli.ui.console import amount, err, print_result, say

if TYPE_CHECKING:
    from gpt2cli.data.prepare_pipeline import PrepareProgress


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Files or globs of text (.txt, .md and others) and of records (.csv, .tsv, .json, .jsonl),"
            " each also as .gz, .bz2 or .zst; .parquet; folders of .txt and .md files; a folder of nanoGPT's"
            " tokens; or - for stdin, which is read as records with --text-field.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", parser=expand, metavar="PATH", help="Output folder.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="gpt2, chars, bpe-8192 (trained on the text, any size), or a tokenizer folder.",
        ),
    ] = "gpt2",
    text_field: TextFieldOption = None,
    split_on: SplitOnOption = None,
    per_line: PerLineOption = False,
    blank_line: BlankLineOption = False,
    encoding: EncodingOption = None,
    max_bad: MaxBadOption = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Fraction of tokens held out for validation.", show_default="0.01"),
    ] = None,
    validation_source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="File, folder or glob held out for validation, instead of a fraction; repeatable.",
        ),
    ] = None,
    shard_tokens: Annotated[
        int | None, typer.Option(help="Tokens per shard file.", show_default="100 million")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the validation split.")] = None,
    block: Annotated[
        int, typer.Option(help="Context length for training; fail if there is less text.")
    ] = 1024,
    workers: Annotated[int, typer.Option(min=0, max=1024, help="Threads; 0: one per core.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier result in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tokenize text into shards for pretraining.

    If interrupted, run the same command again to continue.
    """
    from gpt2cli.data.manifest import PrepareSettings
    from gpt2cli.data.prepare import prepare
    from gpt2cli.data.text_fields import TEXT
    from gpt2cli.encodings import require_encoding
    from gpt2cli.ui.progress import finish, preparing

    given = {
        "seed": seed,
        "shard_tokens": shard_tokens,
        "split_on": split_on,
        "per_line": per_line,
        "blank_line": blank_line,
        "encoding": encoding and require_encoding(encoding),
        "max_bad": max_bad,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if validation is None:
        validation = 0.0 if validation_source else 0.01
    settings = PrepareSettings(tokenizer, tuple(text_field or TEXT), validation, **chosen)
    steps = prepare(
        sources,
        out,
        settings,
        validation_sources=validation_source or (),
        block=block,
        workers=workers,
        force=force,
        stdin_is_records=bool(text_field),
    )
    started = time.monotonic()
    try:
        last = finish(steps, err(), preparing())
    except (KeyboardInterrupt, SystemExit):
        say("Stopped. Run the same command again to continue.", "warn")
        raise
    _summarise(last, time.monotonic() - started, as_json)


def _summarise(last: "PrepareProgress", seconds: float, as_json: bool) -> None:
    n_new = last.n_bytes - last.n_continued
    text = (
        f"{counted(last.n_documents, 'document')}, {amount(last.n_bytes)} of text,"
        f" {counted(last.n_tokens, 'token')}, {last.n_validation_tokens:,} of them for validation"
    )
    if last.phase == "nothing to do":
        say(f"Nothing to do: already prepared, {text}.", "good")
    else:
        speed = f"{amount(n_new / seconds)}/s" if seconds else ""
        continued = f", {amount(last.n_continued)} of it done before" if last.n_continued else ""
        say(f"Done: {text}{continued}; {seconds:.1f} s, {speed}.", "good")
    summary = {
        "out": str(last.out),
        "phase": last.phase,
        "documents": last.n_documents,
        "bytes": last.n_bytes,
        "tokens": last.n_tokens,
        "train_tokens": last.n_tokens - last.n_validation_tokens,
        "validation_tokens": last.n_validation_tokens,
        "seconds": round(seconds, 3),
    }
    print_result(as_json, summary, last.out)
    if not as_json and last.n_validation_tokens:
        source = shlex.quote(f"data.source={last.out}")
        say(f"try it: gpt2 pretrain gpt2-mini {source} data.tokenizer=null data.validation=null")
