"""The sdist and the wheel: what they hold, and that the wheel runs away from the checkout.

The wheel is built from the unpacked sdist, as an index's users build it. A wheel of pure Python is installed
by unpacking it; its command is the entry point of its metadata.
"""

import contextlib
import email
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from gpt2cli import __version__

ROOT = Path(__file__).parents[2]
STEM = f"gpt2cli-{__version__}"
TINY = (
    *("data.source=the-verdict", "model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.context=16"),
    *("optim.steps=2", "optim.warmup_steps=0", "eval.every=2", "eval.tokens=64", "eval.sample_tokens=0"),
    *("run.device=cpu", "run.precision=fp32", "run.compile=off", "run.threads=1"),
)
COMMANDS = (
    ("--version",),
    ("recipes", "list"),
    ("recipes", "show", "finetune-text"),
    ("pretrain", "shakespeare-char", "--offline", "--name", "tiny", *TINY),
    ("generate", "--model", "tiny", "--max-new-tokens", "3", "--json", "The"),
)
# One process for all commands, each through the wheel's own entry point. Prints [exit code, stdout] of each.
PROGRAM = """
import contextlib, importlib.metadata, io, json, sys
[script] = importlib.metadata.distribution("gpt2cli").entry_points.select(group="console_scripts")
main, results = script.load(), [script.name, sys.modules["gpt2cli"].__file__]
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as out:
        try:
            main(words)
        except SystemExit as end:
            out.flush()
            results.append([end.code, out.buffer.getvalue().decode()])
json.dump(results, sys.stdout)
"""


class Built(NamedTuple):
    sdist: set[str]  # the files in it, below its one folder
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    from hatchling.build import build_sdist, build_wheel

    folder = tmp_path_factory.mktemp("dist")
    with contextlib.chdir(ROOT):
        sdist = folder / build_sdist(str(folder))
    with tarfile.open(sdist) as archive:
        # Python 3.11.4 and later warn without a filter; before that there is none.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        names = {member.name.removeprefix(f"{STEM}/") for member in archive if member.isfile()}
    with contextlib.chdir(folder / STEM):
        return Built(names, folder / build_wheel(str(folder)))


def files_below(folder: str) -> set[str]:
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_sdist_holds_the_package_and_the_recipes(built: Built) -> None:
    beside = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert built.sdist == files_below("gpt2cli") | files_below("recipes") | beside


def test_the_wheel_holds_all_that_the_package_reads(built: Built) -> None:
    names = set(zipfile.ZipFile(built.wheel).namelist())
    metadata = {name for name in names if name.startswith(f"{STEM}.dist-info/")}
    recipes = {name.replace("recipes/", "gpt2cli/recipes_shipped/") for name in files_below("recipes")}
    assert names - metadata == files_below("gpt2cli") | recipes
    assert {"gpt2cli/py.typed", "gpt2cli/bundled/story.txt"} < names


def test_the_readme_has_no_link_that_dies_on_an_index(built: Built) -> None:
    text = zipfile.ZipFile(built.wheel).read(f"{STEM}.dist-info/METADATA").decode()
    readme = email.message_from_string(text).get_payload()
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert "# gpt2cli" in readme
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_wheel_runs_without_the_checkout(built: Built, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(built.wheel).extractall(installed)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(COMMANDS),
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, file, version, recipes, recipe, trained, generated = json.loads(done.stdout)
    assert (name, Path(file)) == ("gpt2", installed / "gpt2cli" / "__init__.py")
    assert version == [0, f"gpt2cli {__version__}\n"]
    listed = [line.split()[0] for line in recipes[1].splitlines()]
    assert listed == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert recipe == [0, (ROOT / "recipes" / "finetune-text.yaml").read_text(encoding="utf-8")]
    assert trained == [0, "runs/tiny\n"], done.stderr
    assert (tmp_path / "runs" / "tiny" / "best" / "model.safetensors").is_file()
    found = json.loads(generated[1])
    assert generated[0] == 0 and (len(found["ids"]) == 3 or found["finish_reason"] == "end_of_text")
