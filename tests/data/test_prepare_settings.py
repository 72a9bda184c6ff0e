"""A recipe that asks a prepared folder for other settings, and the command that makes it again."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gpt2cli.data.manifest import PrepareSettings, TokenManifest, read_manifest
from gpt2cli.data.prepare import prepare, prepare_cached
from gpt2cli.data.prepare_settings import prepare_command, prepare_settings, require_same_settings
from gpt2cli.data.token_dataset import open_dataset
from gpt2cli.errors import UsageError
from gpt2cli.recipe.data_sections import DataConfig
from gpt2cli.tokenizer.bpe import gpt2 as gpt2_bpe
from gpt2cli.tokenizer.chars import Chars

Gpt2 = Callable[..., Any]
OUT = Path("my tokens")
MADE = {"tokenizer": "chars", "validation": 0.25, "text_fields": ["title", "body"]}


@pytest.fixture
def manifest() -> TokenManifest:
    """Of records with two fields, in a file whose name the shell must not split."""
    rows = [{"title": f"T{i}", "body": "word " * i, "text": "x"} for i in range(40)]
    Path("my rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("held.txt").write_text("word T0")
    return make(["my *.jsonl"])


def make(sources: Sequence[str], **options: Any) -> TokenManifest:
    settings = PrepareSettings("chars", ("title", "body"), 0.25, seed=7, shard_tokens=500)
    for _ in prepare(sources, OUT, settings, **options):
        pass
    return read_manifest(OUT)


def test_what_the_folder_has_or_nobody_asks_for_is_no_error(manifest: TokenManifest) -> None:
    require_same_settings(OUT, manifest)
    require_same_settings(OUT, manifest, **MADE)
    *_, last = prepare_cached(["held.txt"], PrepareSettings("chars", ("text",), 0.5))
    require_same_settings(OUT, read_manifest(last.out), text_fields=("other",))  # a text file has no fields


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer", "gpt2"),
        ("validation", 0.5),
        ("text_fields", ("text", "body")),
        ("validation_source", "held.txt"),
    ],
)
def test_another_setting_is_refused_with_both_fixes(
    key: str, value: Any, manifest: TokenManifest, gpt2: Gpt2
) -> None:
    """The command is run as it is printed: afterwards the folder has what was asked for."""
    with pytest.raises(UsageError) as caught:
        require_same_settings(OUT, manifest, **{key: value})
    assert f"data.{key} is " in caught.value.what and str(OUT) in caught.value.what
    assert caught.value.fix == f"data.{key}=null"
    _, _, command = caught.value.why.partition("made anew: ")
    program, *arguments = shlex.split(command)
    assert program == "gpt2"
    done = gpt2(*arguments)
    assert done.code == 0, done.err
    made = read_manifest(OUT)
    if key == "validation_source":
        assert made.validation_arguments == ("held.txt",) and made.settings.validation == 0
    else:
        require_same_settings(OUT, made, **{key: value})
        assert made.settings.validation == (0.5 if key == "validation" else 0.25)
    assert (made.settings.seed, made.settings.shard_tokens) == (7, 500)
    with open_dataset(OUT) as data:
        assert data.validation.n_tokens > 0
    with pytest.raises(UsageError):  # the other way round, from what the folder is now
        require_same_settings(OUT, made, tokenizer="chars" if key == "tokenizer" else "gpt2")


def test_a_folder_with_validation_text_is_no_folder_with_a_share(manifest: TokenManifest, gpt2: Gpt2) -> None:
    held = ("prepare", "my rows.jsonl", "--text-field", "body", "--validation-source", "held.txt")
    assert gpt2(*held, "--tokenizer", "chars", "--block", "8", "--out", OUT, "--force").code == 0
    made = read_manifest(OUT)
    with pytest.raises(UsageError, match=r"data\.validation is 0\.1, .* prepared with held\.txt") as caught:
        require_same_settings(OUT, made, validation=0.1)
    assert "--validation 0.1" in caught.value.why and "--validation-source" not in caught.value.why
    assert "--validation-source held.txt" in prepare_command(made, OUT, tokenizer="gpt2")


def test_a_vocabulary_of_ones_own_is_read_from_the_folder_itself(gpt2: Gpt2) -> None:
    """It may be nowhere else. Mutation: its files are written at the end, and an interruption loses them."""
    single = {token: i for token, i in json.loads(gpt2_bpe().vocab_json).items() if i < 256}
    Path("own").mkdir()
    Path("own/vocab.json").write_text(json.dumps(single | {"<|endoftext|>": 256}))
    Path("own/merges.txt").write_text("#version: 0.2\n")
    Path("a.txt").write_text("abc " * 200)
    assert gpt2("prepare", "a.txt", "--tokenizer", "own", "--block", "8", "--out", OUT).code == 0
    made = read_manifest(OUT)
    assert (made.settings.tokenizer, made.n_tokens) == ("bpe", 801)
    command = shlex.split(prepare_command(made, OUT, validation=0.5))
    steps = prepare(["a.txt"], OUT, PrepareSettings(str(OUT), ("text",), 0.5), force=True)
    assert next(steps).phase == "tokens"
    steps.close()
    done = gpt2(*command[1:])
    assert done.code == 0, done.err
    with open_dataset(OUT) as data:
        assert data.manifest.fingerprint == made.fingerprint
        assert (data.train.n_tokens, data.validation.n_tokens) == (401, 400)


def test_the_context_and_standard_input(manifest: TokenManifest) -> None:
    assert "--block 300 " in prepare_command(manifest, OUT, block=300)
    assert "--block 1 " in prepare_command(manifest, OUT), "so short a text may not have 1,024 tokens"
    (source,) = manifest.sources
    piped = replace(manifest, arguments=("-",), sources=(replace(source, path="standard input"),))
    assert prepare_command(piped, OUT).startswith("gpt2 prepare - ")
    assert prepare_command(piped, OUT).endswith("--out 'my tokens' --force < TEXT.txt")


def test_the_defaults_of_a_recipe() -> None:
    assert prepare_settings(DataConfig(source="x")) == PrepareSettings("gpt2", ("text",), 0.1)
    chosen = DataConfig(source="x", tokenizer="chars", validation=0.3, text_fields=["a"])
    assert prepare_settings(chosen) == PrepareSettings("chars", ("a",), 0.3)
    held = DataConfig(source="x", validation_source="y")
    assert prepare_settings(held, Chars.from_text("a")) == PrepareSettings("chars", ("text",), 0.0)
    with pytest.raises(ValidationError, match=r"data\.validation_source takes its place"):
        DataConfig(source="x", validation=0.1, validation_source="y")


def test_a_folder_of_version_1_opens_and_its_split_is_told(manifest: TokenManifest) -> None:
    old = json.loads((OUT / "manifest.json").read_text())
    for name in ("arguments", "validation_arguments"):
        del old[name]
    for source in old["sources"]:
        del source["held_out"]
    old |= {"version": 1, "split": "documents by sha256(seed:index), at least one"}
    old["n_validation_documents"] = 9
    old["settings"]["validation"] = 0.01
    (OUT / "manifest.json").write_text(json.dumps(old))
    with open_dataset(OUT) as data:
        assert data.manifest.train == manifest.train
    steps = list(prepare_cached([OUT], PrepareSettings("gpt2", ("text",), 0.1)))
    (warning,) = [step.warning for step in steps if step.warning]
    assert "1.00% was asked for" in warning
    assert "gpt2 prepare 'my rows.jsonl' --validation 0.01" in warning
    assert steps[-1].out == OUT and steps[-1].is_last
