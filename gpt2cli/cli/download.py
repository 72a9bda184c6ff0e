"""`gpt2 download`: the name of a size or repository in, the path of a model folder on stdout.

A model on disk is used only if it is the one that was asked for. Two concurrent downloads of one
model both succeed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2cli import paths
from gpt2cli.cli.options import JsonOption, OfflineOption
from gpt2cli.errors import Gpt2Error, InputError, ServiceError, UsageError, counted
from gpt2cli.ui.console import err, out, print_json, print_result, say

if TYPE_CHECKING:
    from gpt2cli.checkpoints.provenance import Origin
    from gpt2cli.hub.downloads import Downloaded, Request
    from gpt2cli.hub.registry import Size

# What --list says of a size: the first of these that is true.
HERE = {"ready": "ready", "files": "files, not converted", "incomplete": "incomplete"}


def download(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="124M, 355M, 774M, 1558M, or owner/name on the Hugging Face hub."
        ),
    ] = None,
    source: Annotated[
        Literal["openai", "hf"] | None,
        typer.Option("--source", help="Where to download from; by default openai, then hf."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url", help="URL of a mirror of OpenAI's or the hub's files; no token is sent to it."
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            help="Branch, tag or commit of the hub repository; the model is then called NAME@REVISION.",
        ),
    ] = None,
    list_sizes: Annotated[
        bool, typer.Option("--list", help="List the sizes and which are already downloaded.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check the downloaded files against their hashes; download nothing."),
    ] = False,
    no_convert: Annotated[bool, typer.Option("--no-convert", help="Download only; do not convert.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Download and convert again, even if the model exists.")
    ] = False,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Download a GPT-2 from OpenAI or the Hugging Face hub.

    It is verified and ready to use.
    If interrupted, run the same command again to continue.
    A model that exists is not downloaded again;
    --force replaces one that came from another --source or --base-url.
    """
    from gpt2cli.cli import download_request as asked
    from gpt2cli.hub.downloads import Request, command
    from gpt2cli.hub.inventory import origin_of

    if list_sizes:
        _list(as_json)
        return
    size, repository = asked.find(name)
    sources = asked.sources(repository, source, size, revision)
    canonical = size.name if size else repository
    if verify:
        _verify(canonical, revision, sources, base_url, as_json)
        return
    called = asked.called(canonical, revision)
    model = paths.model_path(called)
    again = f"{command(canonical, source, base_url, revision)} --force"
    if paths.is_model(model) and not (force or no_convert):
        origin = origin_of(model)
        asked.require_asked(called, origin, source, base_url, again)
        _say_here(called, origin)
        print_result(as_json, {"model": str(model), **_facts_of(origin)}, model)
        return
    if not no_convert:
        asked.require_place(model)
    request = Request(base_url=base_url, offline=offline, fresh=force, convert=not no_convert)
    try:
        fetched = _fetch(sources, size, repository, revision, request)
        asked.require_address(canonical, fetched.origin.address, base_url, again)
        whose = {"openai": "OpenAI's", "hf": "the hub's"}[fetched.origin.source]
        amount = f"{len(fetched.files)} of them, {fetched.n_bytes / 1e6:,.1f} MB"
        say(f"{whose} files are here: {amount}, {fetched.origin.address}", "good")
        receipt = None if no_convert else _convert(called, fetched, model, force, again)
    except (KeyboardInterrupt, SystemExit):
        say("Stopped. Run the same command again to continue.", "warn")
        raise
    if receipt:
        say(f"Ready: gpt2 generate --model {called} ...", "good")
    result = {
        "model": None if no_convert else str(model),
        "files": str(fetched.folder),
        **_facts_of(fetched.origin),
        "bytes": fetched.n_bytes,
        "sha256": fetched.files,
        "verification": receipt["verification"] if receipt else None,
    }
    print_result(as_json, result, fetched.folder if no_convert else model)


def _fetch(
    sources: tuple[str, ...],
    size: "Size | None",
    repository: str,
    revision: str | None,
    request: "Request",
) -> "Downloaded":
    """The files, from the first source that serves them."""
    from gpt2cli.hub.downloads import download_hub, download_openai
    from gpt2cli.ui.progress import downloading, finish

    failed: list[ServiceError] = []
    for source in sources:
        try:
            if source == "openai":
                assert size is not None
                steps = download_openai(size, request)
            else:
                steps = download_hub(repository, revision, request)
            fetched = finish(steps, err(), downloading()).result
            assert fetched is not None
            return fetched
        except ServiceError as error:
            failed.append(error)
            if len(failed) < len(sources):
                say(f"{error}; trying the Hugging Face hub", "warn")
    if len(failed) == 1:
        raise failed[0]
    raise ServiceError(
        f"{repository}: neither OpenAI nor the hub serves it", "; ".join(map(str, failed)), failed[0].fix
    )


def _say_here(name: str, origin: "Origin | None") -> None:
    where = f", from {origin.address}" if origin else ""
    say(f"{name} already exists{where}: --verify checks it, --force downloads it again.")


def _facts_of(origin: "Origin | None") -> dict[str, Any]:
    """For --json; a model that was not downloaded has none."""
    return {
        "source": origin.source if origin else None,
        "address": origin.address if origin else None,
        "revision": (origin.revision or None) if origin else None,
    }


def _convert(name: str, fetched: "Downloaded", model: Path, force: bool, again: str) -> dict[str, Any]:
    """Make a model folder of the files; files that turn out to be damaged are refused.

    Returns the receipt; that of another process if it made the same model meanwhile.
    """
    from gpt2cli.convert.pipeline import ConvertOptions, convert
    from gpt2cli.hub.inventory import discard
    from gpt2cli.ui.progress import converting, finish

    try:
        steps = convert(fetched.folder, model, ConvertOptions(force=force, verify=True))
        receipt = finish(steps, err(), converting).receipt
    except InputError:
        if names := discard(fetched.folder):
            damaged = f"these files are damaged; the next download fetches them again: {', '.join(names)}"
            say(damaged, "warn")
        raise
    except Gpt2Error:
        if force or (made := _made_meanwhile(name, fetched, model, again)) is None:
            raise
        return made
    if found := receipt["verification"]:
        say(
            f"Converted: {receipt['parameters']['count']:,} parameters; logits differ from the NumPy"
            f" reference by at most {found['max_difference']:.1e}.",
            "good",
        )
    return receipt


def _made_meanwhile(name: str, fetched: "Downloaded", model: Path, again: str) -> dict[str, Any] | None:
    """The receipt of the model in this place if it was made from the same files.

    Raises UsageError if it was made from others.
    """
    from gpt2cli import paths
    from gpt2cli.checkpoints.provenance import RECEIPT
    from gpt2cli.errors import UsageError
    from gpt2cli.hub.inventory import is_made_of, origin_of
    from gpt2cli.json_files import read_json_object

    if not paths.is_model(model):
        return None
    if not is_made_of(model, fetched.files):
        raise UsageError(f"{name}: another model has come to its place", f"{model}; this replaces it", again)
    _say_here(name, origin_of(model))
    return read_json_object(model / RECEIPT)


def _list(as_json: bool) -> None:
    from gpt2cli.hub.inventory import is_begun, is_here
    from gpt2cli.hub.registry import SIZES, openai_files

    rows: list[dict[str, Any]] = [
        {
            "name": size.name,
            "parameters": size.n_parameters,
            "bytes": sum(known.size or 0 for known in openai_files(size).values()),
            "repository": size.repository,
            "ready": paths.is_model(paths.model_path(size.name)),
            "files": is_here(size),
            "incomplete": is_begun(size),
        }
        for size in SIZES.values()
    ]
    if as_json:
        print_json(rows)
        return
    console = out()
    console.print(f"{'size':<8}{'parameters':>15}{'download':>13}  {'repository of the hub':<32}here")
    for row in rows:
        here = next((text for key, text in HERE.items() if row[key]), "no")
        amount = f"{row['bytes'] / 1e6:,.0f} MB"
        console.print(f"{row['name']:<8}{row['parameters']:>15,}{amount:>13}  {row['repository']:<32}{here}")


def _verify(
    name: str, revision: str | None, sources: tuple[str, ...], base_url: str | None, as_json: bool
) -> None:
    from gpt2cli.hub.downloads import model_name
    from gpt2cli.hub.inventory import verify

    if base_url:
        raise UsageError(
            "--verify fetches nothing", "so that --base-url has no meaning", "leave out --base-url"
        )
    found = []
    for item in verify(name, revision, sources):
        say(f"right ({item.by}): {item.path}")
        found.append({"path": str(item.path), "sha256": item.sha256, "by": item.by})
    say(f"checked: {counted(len(found), 'file')}, as they should be.", "good")
    place = paths.model_path(model_name(name, revision))
    folder = place if paths.is_model(place) else Path(found[0]["path"]).parent
    print_result(as_json, {"folder": str(folder), "files": found}, folder)
