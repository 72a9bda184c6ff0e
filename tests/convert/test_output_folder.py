"""What a conversion may replace, what stays whatever is asked, and what a model without a name is called."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from openai_checkpoint import GPT2_124M, TINY, write_texts
from words import BYTES

from gpt2cli import files, paths
from gpt2cli.checkpoints.folder import load_model, verify, write_manifest, write_model
from gpt2cli.convert.output_folder import check_place, default_name
from gpt2cli.errors import UsageError
from gpt2cli.model.config import PRESETS, to_hugging_face
from gpt2cli.model.gpt2 import GPT2LMHead
from gpt2cli.tokenizer.files import save_tokenizer

Gpt2 = Callable[..., object]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.pt"
    path.touch()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a model of ours; no more than their names is looked at."""
    return model_at(tmp_path / "models/m")


def model_at(folder: Path, *more: str) -> Path:
    folder.mkdir(parents=True)
    names = ["config.json", "model.safetensors", "vocab.json", "merges.txt", "recipe.yaml", *more]
    for name in names:
        (folder / name).write_text(name)
    write_manifest(folder, {name: files.sha256_of(folder / name) for name in names})
    return folder


def openai_at(folder: Path) -> Path:
    write_texts(folder, TINY)
    for name in ("checkpoint", *(f"model.ckpt.{end}" for end in ("index", "meta", "data-00000-of-00001"))):
        (folder / name).touch()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_models_and_empty_folders_may_be_replaced(source: Path, model: Path, tmp_path: Path) -> None:
    assert check_place(source, model, "folder", force=True) == model
    tuned = model_at(tmp_path / "tuned", "prompt.json", "conversion.json", "written-by-a-newer-version.json")
    assert check_place(source, tuned, "folder", force=True) == tuned
    (tmp_path / "empty").mkdir()
    check_place(source, tmp_path / "empty", "folder", force=True)
    with pytest.raises(UsageError, match="exists already"):
        check_place(source, model, "folder", force=False)


def test_what_was_converted_to_openais_format_may_be_replaced(source: Path, tmp_path: Path) -> None:
    openai = openai_at(tmp_path / "openai")
    with pytest.raises(UsageError, match="does not replace"):
        check_place(source, openai, "tensorflow", force=True)  # OpenAI's own
    written = {path.name: "" for path in openai.iterdir()}
    (openai / "conversion.json").write_text(json.dumps({"output": {"files": written}}))
    check_place(source, openai, "tensorflow", force=True)
    (openai / "thesis.txt").touch()
    with pytest.raises(UsageError, match="does not replace") as caught:
        check_place(source, openai, "tensorflow", force=True)
    assert "thesis.txt" in caught.value.why


def website(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "my site", "icons": []}')


def not_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def another_list(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    write_manifest(folder, {"recipe.yaml": "0" * 64})


def project(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "config.json").write_text("{}")


def add(name: str) -> Callable[[Path], None]:
    def adding(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("keep me")

    return adding


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add("thesis.txt"), "thesis.txt is none of its model's files"),
        (add("vocab.bpe"), "vocab.bpe is none of its model's files"),
        (add(".git/config"), ".git is none of its model's files"),
        (without("manifest.json"), "not a model that gpt2 wrote"),
        (add("train_state.json"), "train_state.json is none of its model"),
        (add("run.json"), "run.json is none of its model"),
        (add("checkpoints/kept.txt"), "checkpoints is none of its model"),
        (website, "is damaged, or not a file of gpt2cli"),
        (not_json, "is not JSON"),
        (another_list, "not a model that gpt2 wrote"),
        (project, "not a model that gpt2 wrote"),
    ],
)
def test_what_force_does_not_delete(
    change: Callable[[Path], None], reason: str, source: Path, model: Path
) -> None:
    change(model)
    before = content(model)
    with pytest.raises(UsageError, match="does not replace") as caught:
        check_place(source, model, "folder", force=True)
    assert reason in caught.value.why and caught.value.fix == f"mv {model} {model}.old"
    assert content(model) == before


@pytest.mark.parametrize("inside", ["checkpoints/step-000007", "best", "checkpoints/new", "checkpoints/x/y"])
@pytest.mark.parametrize("to", ["folder", "gguf"])
def test_nothing_goes_among_the_checkpoints_of_a_run(
    to: str, inside: str, source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs/mine"
    checkpoint = model_at(run / "checkpoints/step-000007")
    (run / "best").symlink_to("checkpoints/step-000007")
    with pytest.raises(UsageError, match="among the checkpoints of the run mine"):
        check_place(source, run / inside, to, force=True)
    verify(checkpoint)


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_takes_no_files_place_nor_a_file_a_folders(
    force: bool, source: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for out, to, said in (
        (tmp_path / "file", "folder", "is a file: --to folder makes a folder"),
        (tmp_path / "file", "tensorflow", "is a file: --to tensorflow makes a folder"),
        (model, "gguf", "is a folder: --to gguf makes a file"),
        (model, "nanogpt", "is a folder: --to nanogpt makes a file"),
    ):
        with pytest.raises(UsageError, match=said):
            check_place(source, out, to, force=force)


def test_links_are_followed(source: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("models/m")
    assert check_place(source, tmp_path / "link", "folder", force=True) == model
    (model / "thesis.txt").touch()
    with pytest.raises(UsageError, match="does not replace"):
        check_place(source, tmp_path / "link", "folder", force=True)
    (tmp_path / "dangling").symlink_to("models/new")
    assert check_place(source, tmp_path / "dangling", "folder", force=False) == tmp_path / "models/new"
    (tmp_path / "lost").symlink_to("nowhere/new")
    with pytest.raises(UsageError, match=r"is a symbolic link to .*nowhere/new"):
        check_place(source, tmp_path / "lost", "folder", force=True)
    (tmp_path / "to-source").symlink_to(source)
    with pytest.raises(UsageError, match="is the source itself"):
        check_place(source, tmp_path / "to-source", "nanogpt", force=True)


def test_a_model_put_aside_by_a_killed_conversion_exists(source: Path, model: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    model.rename(model.with_name(f"{files.REPLACED}m-{files.machine()}-{process.pid}"))
    with pytest.raises(UsageError, match="exists already"):
        check_place(source, model, "folder", force=False)
    verify(model)


def write_config(folder: Path, size: str, **changed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {**to_hugging_face(PRESETS[size]), **changed, "resid_pdrop": 0.1}  # as theirs has
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_only_openais_models_get_openais_names(tmp_path: Path) -> None:
    for name in ("gpt2.pt", "GPT2-Medium.pth", "124M.zip"):
        (tmp_path / name).touch()
        assert default_name(tmp_path / name) == f"{Path(name).stem}-converted"
        assert paths.canonical_size(default_name(tmp_path / name)) is None
    (tmp_path / "mine.pt").touch()
    assert default_name(tmp_path / "mine.pt") == "mine"

    write_texts(tmp_path / "a/124M", GPT2_124M)
    assert default_name(tmp_path / "a/124M") == "124M"
    write_texts(tmp_path / "a/355M", GPT2_124M)
    assert default_name(tmp_path / "a/355M") == "355M-converted"
    assert default_name(write_config(tmp_path / "b/gpt2", "124M")) == "gpt2"
    assert default_name(write_config(tmp_path / "b/gpt2-xl", "1558M")) == "gpt2-xl"
    assert default_name(write_config(tmp_path / "c/gpt2", "355M")) == "gpt2-converted"
    assert default_name(write_config(tmp_path / "c/124M", "124M", n_inner=100)) == "124M-converted"
    for text in ("{", "[]", '{"n_layer": "many"}'):
        (tmp_path / "c/gpt2/config.json").write_text(text)
        assert default_name(tmp_path / "c/gpt2") == "gpt2-converted"


def test_a_run_is_never_one_of_openais_models(tmp_path: Path) -> None:
    checkpoint = write_config(tmp_path / "runs/gpt2/checkpoints/step-000007", "124M")
    assert default_name(checkpoint) == "gpt2-converted"
    mine = write_config(tmp_path / "runs/mine/checkpoints/step-000007", "124M")
    assert default_name(mine) == "mine"


def test_a_name_never_hides_the_model(tmp_path: Path) -> None:
    (tmp_path / ".secret.pt").touch()
    assert default_name(tmp_path / ".secret.pt") == "secret"


def write_foreign(folder: Path, loud_model: GPT2LMHead) -> Path:
    folder.mkdir(parents=True)
    write_model(folder, loud_model, BYTES, "")
    (folder / "recipe.yaml").unlink()
    return folder


def test_a_size_is_a_name_that_must_be_earned(gpt2: Gpt2, loud_model: GPT2LMHead, tmp_path: Path) -> None:
    """A small model called gpt2 must not become what every command takes for OpenAI's 124M."""
    done = gpt2("convert", write_foreign(tmp_path / "theirs/gpt2", loud_model), "--no-verify")
    assert (done.code, done.out) == (0, f"{paths.models() / 'gpt2-converted'}\n"), done.err
    assert not (paths.models() / "124M").exists()


def test_force_through_a_link(gpt2: Gpt2, loud_model: GPT2LMHead, tmp_path: Path) -> None:
    theirs = write_foreign(tmp_path / "theirs", loud_model)
    assert gpt2("convert", theirs, "--out", tmp_path / "disk2/m", "--no-verify").code == 0
    (tmp_path / "out").symlink_to("disk2/m")
    done = gpt2("convert", theirs, "--out", tmp_path / "out", "--force", "--no-verify")
    assert done.code == 0, done.err
    assert (tmp_path / "out").is_symlink() and os.listdir(tmp_path / "disk2") == ["m"]
    verify(tmp_path / "disk2/m")
    load_model(tmp_path / "out")
    (tmp_path / "file.pt").symlink_to("disk2/file.pt")
    save_tokenizer(BYTES, tmp_path / "disk2")  # beside nanoGPT's file, which holds none
    done = gpt2("convert", theirs, "--to", "nanogpt", "--out", tmp_path / "file.pt", "--no-verify")
    assert done.code == 0, done.err
    assert (tmp_path / "file.pt").is_symlink() and (tmp_path / "disk2/file.pt").is_file()


def test_leftovers_are_no_models(gpt2: Gpt2, model: Path, tmp_path: Path) -> None:
    paths.models().mkdir(parents=True)
    shutil.copytree(model, paths.models() / "whole")
    for name in (".partial-x-00000000-7", ".replaced-whole"):
        shutil.copytree(model, paths.models() / name)
        os.utime(paths.models() / name, (2**32, 2**32))
        with pytest.raises(paths.InputError, match="no such model") as caught:
            paths.find_model(name)
        assert caught.value.fix == "did you mean whole?"
    assert paths.find_model(None) == paths.models() / "whole"
    assert paths.find_model("whole") == paths.models() / "whole"
    os.chdir(model)
    assert paths.find_model(".") == Path(".")
    with pytest.raises(paths.InputError, match="'': no such model"):
        paths.find_model("")
