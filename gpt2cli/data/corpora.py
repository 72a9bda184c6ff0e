"""The named corpora: URL, size, SHA-256, licence, and the bundled text that may replace each.

The order of look-up: a path that the user gave, the mirror, the cache, the URL, the bundled text.
"""

import difflib
import glob
import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2cli import bundled, files, paths
from gpt2cli.errors import Gpt2Error, InputError, ServiceError
from gpt2cli.files import listing_near
from gpt2cli.hub.fetch import RetryPolicy, fetch
from gpt2cli.hub.registry import Expected

# Short timeouts: without a network, the bundled text must follow quickly.
POLICY = RetryPolicy(connect=5.0, stall=10.0, attempts=1)

Origin = Literal["path", "mirror", "cache", "download", "bundled"]


@dataclass(frozen=True)
class Corpus:
    """One public text. `stand_in` names the bundled file that may replace it, if any.

    Where the hash is None, no publisher states it: the file is taken as it is in the mirror or the cache,
    and not downloaded.
    """

    name: str
    file: str
    n_bytes: int | None
    sha256: str | None
    url: str
    licence: str
    stand_in: str | None
    member: str | None = None  # of the zip at `url`; `n_bytes` and `sha256` are the member's


@dataclass(frozen=True)
class FoundCorpus:
    """Where a text was found. `sha256` is None for a path, whose content is not known in advance."""

    name: str
    paths: tuple[Path, ...]
    origin: Origin
    sha256: str | None
    warning: str | None


_ROWS = (
    Corpus(
        name="the-verdict",
        file="the-verdict.txt",
        n_bytes=20479,
        sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"
        "/ch02/01_main-chapter-code/the-verdict.txt",
        licence="public domain (Edith Wharton, 1908)",
        stand_in="story.txt",
    ),
    Corpus(
        name="tiny-shakespeare",
        file="tinyshakespeare.txt",
        n_bytes=1115394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        licence="public domain (William Shakespeare)",
        stand_in="story.txt",
    ),
    Corpus(
        # No stand-in: other text would falsify a comparison of perplexities.
        name="wikitext-2-test",
        file="wikitext-2-test.txt",
        n_bytes=1256449,
        sha256="d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        url="https://raw.githubusercontent.com/pytorch/examples/main"
        "/word_language_model/data/wikitext-2/test.txt",
        licence="CC BY-SA (Wikipedia's authors)",
        stand_in=None,
    ),
    Corpus(
        name="sms-spam",
        file="SMSSpamCollection.tsv",
        n_bytes=477907,
        sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
        url="https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
        member="SMSSpamCollection",
        licence="CC BY 4.0 (Tiago Almeida and José Hidalgo, 2011)",
        stand_in="messages.tsv",
    ),
    Corpus(
        name="instructions",
        file="instruction-data.json",
        n_bytes=203524,
        sha256="7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
        url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"
        "/ch07/01_main-chapter-code/instruction-data.json",
        licence="Apache-2.0 (Sebastian Raschka)",
        stand_in="instructions.json",
    ),
    # Benchmarks. Other items would give other figures, so none has a stand-in; the miniatures are named.
    Corpus(
        name="lambada-test",
        file="lambada_test.jsonl",
        n_bytes=1819752,
        sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
        url="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        licence="CC BY 4.0 (Denis Paperno and others, 2016)",
        stand_in=None,
    ),
    Corpus(
        name="hellaswag-val",
        file="hellaswag_val.jsonl",
        n_bytes=None,
        sha256="0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        url="https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
        licence="MIT (Rowan Zellers and others, 2019)",
        stand_in=None,
    ),
    Corpus(
        name="hellaswag-val-text",
        file="hellaswag_val_full.txt.bz2",
        n_bytes=1964544,
        sha256="50b637899e4263c2bc456c2dc726c95d2c8cd8e2a552ea5bd7719ce3cb03fe5b",
        url="https://raw.githubusercontent.com/klosax/hellaswag_text_data/main/hellaswag_val_full.txt.bz2",
        licence="MIT (Rowan Zellers and others, 2019)",
        stand_in=None,
    ),
    *(
        Corpus(
            name=f"cbt-{kind.lower()}-valid",
            file=f"cbtest_{kind}_valid_2000ex.txt",
            n_bytes=None,
            sha256=None,
            url="http://www.thespermwhale.com/jaseweston/babi/CBTest.tgz",
            licence="public domain books (Felix Hill and others, 2016)",
            stand_in=None,
            member=f"CBTest/data/cbtest_{kind}_valid_2000ex.txt",
        )
        for kind in ("CN", "NE")
    ),
)
# Written for this project, and bundled only: {name: file}.
BUNDLED = {
    "summaries": "summaries.json",
    "lambada-miniature": "lambada-miniature.jsonl",
    "hellaswag-miniature": "hellaswag-miniature.jsonl",
    "cbt-cn-miniature": "cbt-cn-miniature.txt",
    "cbt-ne-miniature": "cbt-ne-miniature.txt",
}
CORPORA = {corpus.name: corpus for corpus in _ROWS}


def find_corpus(name_or_path: str, *, offline: bool, allow_bundled: bool) -> FoundCorpus:
    """The text that `name_or_path` means: a corpus of the table, else a file, directory or glob.

    ./NAME is a file with the name of a corpus. `offline` forbids the network; `allow_bundled` lets a
    bundled text replace the corpus, with a warning.
    Raises InputError for an unknown name or a wrong file in the mirror, ServiceError if the corpus
    cannot be downloaded.
    """
    if name_or_path in BUNDLED:
        return _bundled(name_or_path, BUNDLED[name_or_path], None)
    corpus = CORPORA.get(name_or_path)
    if corpus is None:
        return _path(name_or_path)
    mirror = paths.mirror()
    if mirror and (path := mirror / corpus.file).exists():
        digest = files.sha256_of(path)
        if corpus.sha256 not in (digest, None):
            raise InputError(
                f"{path}: is not {corpus.name}",
                f"its SHA-256 is {digest}, not {corpus.sha256}",
                f"put the right file there ({corpus.url}), or unset GPT2_MIRROR",
            )
        return FoundCorpus(corpus.name, (path,), "mirror", digest, None)
    cached = paths.corpora() / corpus.file if paths.has_home() else None
    if cached and os.path.isfile(cached):
        digest = files.sha256_of(cached)
        if corpus.sha256 in (digest, None):  # else it is replaced
            return FoundCorpus(corpus.name, (cached,), "cache", digest, None)
    try:
        return FoundCorpus(corpus.name, (_download(corpus, offline),), "download", corpus.sha256, None)
    except Gpt2Error as error:
        if not allow_bundled or not corpus.stand_in:
            raise
        warning = (
            f"{corpus.name} cannot be downloaded ({error.what}); the bundled {corpus.stand_in}, another text,"
            f" replaces it: the results will not be those of {corpus.name}"
        )
        return _bundled(corpus.name, corpus.stand_in, warning)


def find_corpora(names: Sequence[str], *, offline: bool, allow_bundled: bool) -> FoundCorpus:
    """The texts that several names mean, as one. Raises as `find_corpus`."""
    found = [find_corpus(name, offline=offline, allow_bundled=allow_bundled) for name in names]
    if len(found) == 1:
        return found[0]
    origins, warnings = {one.origin for one in found}, [one.warning for one in found if one.warning]
    return FoundCorpus(
        ", ".join(one.name for one in found),
        tuple(path for one in found for path in one.paths),
        found[0].origin if len(origins) == 1 else "path",
        None,
        "; ".join(warnings) or None,
    )


def _path(argument: str) -> FoundCorpus:
    path = paths.expand(argument)
    # Not Path.glob, which has no absolute patterns.
    if os.path.lexists(path) or glob.glob(str(path), recursive=True):
        return FoundCorpus(argument, (path,), "path", None, None)
    names = [*CORPORA, *BUNDLED]
    near = difflib.get_close_matches(argument, names, n=1)
    raise InputError(
        f"{argument}: neither a file nor a known corpus",
        f"the corpora are {', '.join(names)}",
        f"did you mean {near[0]}?" if near else listing_near(path),
    )


def _bundled(name: str, file: str, warning: str | None) -> FoundCorpus:
    path = Path(bundled.__file__).parent / file
    return FoundCorpus(name, (path,), "bundled", files.sha256_of(path), warning)


def _download(corpus: Corpus, offline: bool) -> Path:
    if offline:
        raise _unavailable(corpus, "the network is forbidden (--offline)")
    if corpus.sha256 is None:
        raise _unavailable(corpus, "no publisher states the hash of the file")
    path = paths.corpora() / corpus.file
    zipped = path.with_name(f"{path.name}.zip")
    expected = Expected(corpus.n_bytes, corpus.sha256)
    if corpus.member and corpus.n_bytes:
        expected = Expected(max_size=corpus.n_bytes)
    try:
        for _ in fetch(corpus.url, zipped if corpus.member else path, expected, policy=POLICY):
            pass
    except ServiceError as error:
        what = error.what.removeprefix(f"{corpus.url}: ")
        raise _unavailable(corpus, f"{what}: {error.why}" if error.why else what) from None
    except InputError as error:
        raise InputError(f"{corpus.url}: is not {corpus.name}", error.why, _by_hand(corpus)) from None
    if corpus.member:
        try:
            files.write_file(path, _unpacked(corpus, zipped))
        finally:
            zipped.unlink()
    return path


def _unpacked(corpus: Corpus, archive: Path) -> bytes:
    """The corpus's file from a zip. Raises InputError if it is missing or has another hash."""
    why = ""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(corpus.member or "") as member:
            content = member.read((corpus.n_bytes or 0) + 1)  # one byte too many shows another file
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, zlib.error) as error:
        content, why = b"", f"not a zip that holds {corpus.member}: {error}"
    digest = hashlib.sha256(content).hexdigest()
    if digest != corpus.sha256:
        why = why or f"SHA-256 of its {corpus.member} is {digest}, not {corpus.sha256}"
        raise InputError(f"{corpus.url}: is not {corpus.name}", why, _by_hand(corpus))
    return content


def _unavailable(corpus: Corpus, why: str) -> ServiceError:
    return ServiceError(f"{corpus.name}: cannot be downloaded from {corpus.url}", why, _by_hand(corpus))


def _by_hand(corpus: Corpus) -> str:
    size = f" ({corpus.n_bytes} bytes)" if corpus.n_bytes else ""
    how = f"download it elsewhere as {corpus.file}{size}"
    if corpus.member and corpus.sha256 is None:
        how = f"download {corpus.url} elsewhere, unpack {corpus.member}"
    return f"{how}, and put it into {paths.corpora()}, or set GPT2_MIRROR to its folder"
