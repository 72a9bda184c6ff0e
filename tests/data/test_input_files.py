"""Which files are meant: globs, directories, what is refused."""

import shlex
from pathlib import Path

import pytest

from gpt2cli.data.input_files import expand_sources
from gpt2cli.errors import InputError, UsageError


def names(sources: list[str | Path], out: Path = Path("out")) -> list[str]:
    return [source.name for source in expand_sources(sources, out=out)]


def test_directory_gives_texts_sorted_by_parts_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c.py", "sub/z.txt.gz", "sub/a.txt", "a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)  # must not be followed
    found = [Path(name).relative_to(tmp_path).as_posix() for name in names([tmp_path])]
    assert found == ["a.md", "b.txt", "sub/a.txt", "sub/z.txt.gz"]


def test_the_folder_that_is_written_is_never_a_source(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "merges.txt").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    assert names([tmp_path], tmp_path / "out") == [str(tmp_path / "a.txt")]
    assert names([f"{tmp_path}/**/*.txt"], tmp_path / "out") == [str(tmp_path / "a.txt")]


def test_glob_is_sorted_and_a_file_with_brackets_is_a_file(tmp_path: Path) -> None:
    for name in ("2.txt", "1.txt", "[x].txt"):
        (tmp_path / name).write_text("x")
    assert names([f"{tmp_path}/?.txt"]) == [str(tmp_path / "1.txt"), str(tmp_path / "2.txt")]
    assert names([f"{tmp_path}/[x].txt"]) == [str(tmp_path / "[x].txt")]


def test_kind_and_gzip_follow_the_name(tmp_path: Path) -> None:
    sources = expand_sources(
        ["a.jsonl.gz", "b.parquet", "c.txt", "d", "-"], out=tmp_path, stdin_is_records=True
    )
    assert [(s.kind, s.packing) for s in sources] == [
        ("jsonl", "gz"),
        ("parquet", ""),
        ("text", ""),
        ("text", ""),
        ("records", ""),
    ]


def test_the_tokenizer_of_a_model_is_no_text(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "notes.txt", "texts/merges.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names([tmp_path]) == [str(tmp_path / "notes.txt"), str(tmp_path / "texts" / "merges.txt")]


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        (("a.py", "b.py", "c.rs", "d.csv", "e.csv", "f.csv"), "'code/*.csv'"),
        (("a.py", "sub/b.py", ".git/x.rs", ".git/y.rs", ".git/z.rs"), "'code/**/*.py'"),
        (("a.jsonl.gz", "b.jsonl.gz", "c.py"), "'code/*.jsonl.gz'"),
        (("a.bin", "b.bin", "c.TeX"), "'code/*.TeX'"),
    ],
)
def test_a_folder_without_texts_names_what_it_holds_most_of(files: tuple[str, ...], pattern: str) -> None:
    for name in files:
        path = Path("code", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\xff" if path.suffix == ".bin" else b"x")
    with pytest.raises(InputError) as caught:
        names(["code"])
    assert caught.value.fix.endswith(pattern)
    suffix = pattern.rstrip("'").rpartition("*")[2]
    wanted = [str(Path("code", name)) for name in files if name.endswith(suffix)]
    assert names(shlex.split(pattern)) == wanted, "the pattern that is named is one that can be typed"


@pytest.mark.parametrize("argument", ["nano", "nano/train.bin"])
def test_token_files_of_nanogpt_are_named_as_what_they_are(argument: str) -> None:
    Path("nano").mkdir()
    for name in ("train.bin", "val.bin"):
        Path("nano", name).write_bytes(b"\1\0\2\0")
    Path("nano", "readme.md").write_text("about it")
    with pytest.raises(InputError, match="nanoGPT") as caught:
        names([argument])
    assert caught.value.fix == "gpt2 prepare nano --out nano-prepared"


@pytest.mark.parametrize(
    ("sources", "held_out", "fix"),
    [
        (["a.txt"], ["./a.txt"], "name it once"),
        (["books"], ["books/b.txt"], "move it out of books"),
        (["books/*.txt"], ["books"], "name it once"),
    ],
)
def test_no_file_is_for_both_splits(sources: list[str], held_out: list[str], fix: str) -> None:
    Path("books").mkdir()
    for name in ("a.txt", "books/b.txt"):
        Path(name).write_text("x")
    with pytest.raises(UsageError, match="named twice") as caught:
        expand_sources(sources, out=Path("out"), held_out=held_out)
    assert caught.value.fix == fix


@pytest.mark.parametrize(
    ("sources", "kind", "message"),
    [
        ([], UsageError, "no source given"),
        (["*.none"], InputError, "no file matches"),
        (["empty"], InputError, "empty: no text"),
        (["a.txt", "./a.txt"], UsageError, "named twice"),
        (["-", "-"], UsageError, "named twice"),
        (["x.parquet.gz"], InputError, "gzipped parquet"),
    ],
)
def test_refusals(
    sources: list[str], kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(kind, match=message):
        expand_sources(sources, out=Path("out"))
