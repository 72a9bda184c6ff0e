"""Owns `gpt2 download`: a size or a repository's name in, the path of a model folder on stdout."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from gpt2cli.weights.collecting import Fetched, Request
    from gpt2cli.weights.published import Size

SOURCES = ("openai", "hf")


def download(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="124M, 355M, 774M, 1558M or another name of theirs; or owner/name of the Hugging Face hub.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="openai or hf; otherwise openai, then hf.", show_default=False),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url", help="A mirror of either layout. It is sent no token.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="Branch, tag or commit of the repository; means --source hf.",
            show_default=False,
        ),
    ] = None,
    list_sizes: Annotated[
        bool, typer.Option("--list", help="Show the sizes, and what is here already.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Fetch nothing: compare what is here with its hashes.")
    ] = False,
    no_convert: Annotated[bool, typer.Option("--no-convert", help="Keep the files as they came.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch and convert anew, whatever is here.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Get a GPT-2: OpenAI's own files or the hub's, proved and made ready to use.

    Interrupted, the same command continues where it was.
    """
    from gpt2cli import home
    from gpt2cli.ui.console import err, printable
    from gpt2cli.weights.collecting import Request
    from gpt2cli.weights.published import SIZES

    if list_sizes:
        _list(as_json)
        return
    size, repository = _find(name)
    sources = _sources(source, size, revision)
    canonical = size.name if size else repository
    if verify:
        _verify(canonical, as_json)
        return
    model = home.model_place(canonical)
    if home.is_model(model) and not (force or no_convert):
        err().print(f"{canonical} is here already: --verify compares it, --force fetches it anew.")
        _print_result(as_json, {"model": str(model), "source": None}, model)
        return
    if "openai" in sources and not no_convert:
        from gpt2cli.weights.tf_process import require_tensorflow

        require_tensorflow(f"gpt2 download {canonical} --source hf")  # before anything is fetched
    room = SIZES[size.name].data_bytes if size and not no_convert else 0
    request = Request(base_url=base_url, offline=offline, fresh=force, room=room)
    try:
        fetched = _fetch(sources, size, repository, revision, request, err())
        _say_fetched(fetched, err())
        receipt = None if no_convert else _convert(fetched, model, force)
    except (KeyboardInterrupt, SystemExit):
        err().print("Stopped. The same command continues where it was.", style="warn")
        raise
    result = {
        "model": None if no_convert else str(model),
        "files": str(fetched.folder),
        "source": fetched.source,
        "address": fetched.origin,
        "revision": fetched.revision or None,
        "bytes": fetched.n_bytes,
        "sha256": fetched.files,
        "verification": receipt["verification"] if receipt else None,
    }
    if receipt:
        err().print(printable(f"Ready: gpt2 generate --model {canonical} ..."), style="good")
    _print_result(as_json, result, fetched.folder if no_convert else model)


def _find(name: str | None) -> "tuple[Size | None, str]":
    """One of the four sizes or None, and the repository of the hub."""
    import difflib

    from gpt2cli import home
    from gpt2cli.errors import UsageError
    from gpt2cli.weights.published import SIZES

    if name is None:
        raise UsageError("which model?", f"there are {', '.join(SIZES)}", "gpt2 download 124M")
    size = SIZES.get(home.canonical(name) or "")
    if size:
        return size, size.repository
    if "/" not in name:
        near = difflib.get_close_matches(name, home.ALIASES, n=1)
        raise UsageError(
            f"{name}: no such model",
            f"there are {', '.join(SIZES)}, and owner/name of the Hugging Face hub",
            f"gpt2 download {near[0]}" if near else "gpt2 download --list",
        )
    return None, name


def _sources(source: str | None, size: "Size | None", revision: str | None) -> tuple[str, ...]:
    """Where to look, in order."""
    from gpt2cli.errors import UsageError

    if source is not None and source not in SOURCES:
        raise UsageError(f"--source {source} is unknown", f"there are {' and '.join(SOURCES)}")
    if source == "openai" and size is None:
        raise UsageError(
            "OpenAI has only its own sizes", "owner/name is of the Hugging Face hub", "--source hf"
        )
    if source == "openai" and revision:
        raise UsageError("--revision goes with --source hf", "OpenAI's files have no revisions")
    if source:
        return (source,)
    return ("hf",) if revision or size is None else SOURCES


def _fetch(
    sources: tuple[str, ...],
    size: "Size | None",
    repository: str,
    revision: str | None,
    request: "Request",
    console: "Console",
) -> "Fetched":
    """The files, from the first source that serves them."""
    from gpt2cli.errors import ServiceError
    from gpt2cli.ui.console import printable
    from gpt2cli.ui.downloading import show_fetching
    from gpt2cli.weights.fetching import fetch_hub, fetch_openai

    failed: list[ServiceError] = []
    for source in sources:
        try:
            if source == "openai":
                assert size is not None
                return show_fetching(fetch_openai(size, request), console)
            return show_fetching(fetch_hub(repository, revision, request), console)
        except ServiceError as error:
            failed.append(error)
            if len(failed) < len(sources):
                console.print(printable(f"{error}; trying the Hugging Face hub"), style="warn")
    if len(failed) == 1:
        raise failed[0]
    raise ServiceError(
        f"{repository}: neither OpenAI nor the hub serves it", "; ".join(map(str, failed)), failed[0].fix
    )


def _say_fetched(fetched: "Fetched", console: "Console") -> None:
    from gpt2cli.ui.console import printable

    who = {"openai": "OpenAI's files", "hf": "the hub's files"}[fetched.source]
    text = f"{who} are here: {len(fetched.files)} of them, {fetched.n_bytes / 1e6:,.1f} MB, {fetched.origin}"
    console.print(printable(text), style="good")


def _convert(fetched: "Fetched", model: Path, force: bool) -> dict[str, Any]:
    """Make a model folder of the files; files that turn out to be damaged are refused."""
    from gpt2cli.errors import InputError
    from gpt2cli.ui.console import err, printable
    from gpt2cli.ui.converting import show_converting
    from gpt2cli.weights.conversion import Wish, convert
    from gpt2cli.weights.fetching import discard

    try:
        receipt = show_converting(convert(fetched.folder, model, Wish(force=force, verify=True)), err())
    except InputError:
        names = discard(fetched.folder)
        if names:
            text = f"these files are damaged, and the next download fetches them anew: {', '.join(names)}"
            err().print(printable(text), style="warn")
        raise
    found = receipt["verification"]
    if found:
        err().print(
            f"Converted: {receipt['parameters']['count']:,} parameters; logits differ from an independent"
            f" computation by at most {found['max_difference']:.1e}.",
            style="good",
        )
    return receipt


def _list(as_json: bool) -> None:
    import json

    from gpt2cli import home
    from gpt2cli.ui.console import out
    from gpt2cli.weights.fetching import is_here
    from gpt2cli.weights.published import SIZES, openai_files

    rows: list[dict[str, Any]] = [
        {
            "name": size.name,
            "parameters": size.n_parameters,
            "bytes": sum(known.n_bytes or 0 for known in openai_files(size).values()),
            "repository": size.repository,
            "ready": home.is_model(home.model_place(size.name)),
            "files": is_here(size),
        }
        for size in SIZES.values()
    ]
    if as_json:
        print(json.dumps(rows))  # noqa: T201
        return
    console = out()
    console.print(f"{'size':<8}{'parameters':>15}{'download':>13}  {'repository of the hub':<32}here")
    for row in rows:
        here = "ready" if row["ready"] else "files, not converted" if row["files"] else "no"
        amount = f"{row['bytes'] / 1e6:,.0f} MB"
        console.print(f"{row['name']:<8}{row['parameters']:>15,}{amount:>13}  {row['repository']:<32}{here}")


def _verify(name: str, as_json: bool) -> None:
    import json

    from gpt2cli import home
    from gpt2cli.ui.console import err, out, printable
    from gpt2cli.weights.fetching import verify

    found = []
    for item in verify(name):
        err().print(printable(f"right ({item.by}): {item.path}"))
        found.append({"path": str(item.path), "sha256": item.sha256, "by": item.by})
    err().print(f"{len(found)} files are what they should be.", style="good")
    place = home.model_place(name)
    folder = place if home.is_model(place) else Path(found[0]["path"]).parent
    if as_json:
        print(json.dumps({"folder": str(folder), "files": found}))  # noqa: T201
    else:
        out().print(printable(str(folder)))


def _print_result(as_json: bool, result: dict[str, Any], path: Path) -> None:
    import json

    from gpt2cli.ui.console import out, printable

    if as_json:
        print(json.dumps(result))  # noqa: T201
    else:
        out().print(printable(str(path)))
