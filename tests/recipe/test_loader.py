"""From a name to a checked recipe, and every message on the way."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.errors import Gpt2Error, InputError, UsageError
from gpt2cli.recipe import loader, shipped
from gpt2cli.recipe.loader import dump_recipe, find_recipe, load_recipe
from gpt2cli.recipe.schema import PretrainRecipe, recipe_fields
from gpt2cli.recipe.shipped import read_header, shipped_recipes

KEYS = [key for key, _, _ in recipe_fields(PretrainRecipe)]
Refused = Callable[..., Gpt2Error]
Written = Callable[[str | bytes], str]


def test_values_and_where_they_come_from(written: Written, small: str) -> None:
    loaded = load_recipe(written(small), ["optim.lr=3e-4", "optim.beta2=0.99", "seed=1", "seed=7"])
    assert loaded.recipe.optim.lr == 3e-4
    assert loaded.recipe.optim.beta2 == 0.99
    assert loaded.recipe.seed == 7
    assert loaded.recipe.model.context == 256
    assert loaded.path == Path("x.yaml")
    assert set(loaded.origins) == set(KEYS)
    assert loaded.origins["task"] == "x.yaml:2"
    assert loaded.origins["model.context"] == "x.yaml:7"
    assert loaded.origins["optim.lr"] == "override"
    assert loaded.origins["optim.beta2"] == "override"
    assert loaded.origins["optim.clip"] == "default"


def test_a_float_may_be_written_as_an_integer(written: Written, small: str) -> None:
    assert load_recipe(written(small.replace("4e-4", "1"))).recipe.optim.lr == 1.0


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_are_words(word: str, written: Written, small: str) -> None:
    assert load_recipe(written(small + f"run: {{compile: {word}}}\n")).recipe.run.compile == word


def test_an_empty_section_is_all_defaults(written: Written, small: str) -> None:
    name = written(small + "run:\n  # nothing yet\n")
    assert load_recipe(name).recipe.run == PretrainRecipe.model_fields["run"].default
    assert load_recipe(name, ["run.threads=2"]).recipe.run.threads == 2


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        ("  learnign_rate: 1", "x.yaml:11 optim.learnign_rate: unknown key", "did you mean optim.lr?"),
        ("  warmup: 1", "x.yaml:11 optim.warmup: unknown key", "did you mean optim.warmup_steps?"),
        ("  batch_size: 1", "x.yaml:11 optim.batch_size: unknown key", "did you mean batch.micro_batch?"),
        ("  context: 1", "x.yaml:11 optim.context: unknown key", "did you mean model.context?"),
        ("  zzzzz: 1", "x.yaml:11 optim.zzzzz: unknown key", "gpt2 recipes show verdict"),
        ("lr: 1", "x.yaml:11 lr: unknown key", "did you mean optim.lr?"),
        ("modle: {}", "x.yaml:11 modle: unknown key", "did you mean model?"),
        ("optim.lr: 1", "x.yaml:11 optim.lr: unknown key", "did you mean optim.lr?"),
        ("1: 1", "x.yaml:11 1: unknown key", ""),
    ],
)
def test_unknown_keys(line: str, what: str, fix: str, refused: Refused, small: str) -> None:
    error = refused(small + line + "\n")
    assert error.exit_code == 2
    assert error.what == what
    assert fix in error.fix
    assert "keys of" in error.why


def test_a_misspelt_required_key_is_told_as_such(refused: Refused, small: str) -> None:
    error = refused(small.replace("steps", "stpes"))
    assert error.what == "x.yaml:9 optim.stpes: unknown key"
    assert error.fix == "did you mean optim.steps?"


@pytest.mark.parametrize(
    ("override", "what", "why"),
    [
        ("optim.lr=0", "must be > 0", "it is 0"),
        ("optim.lr=-1e-3", "must be > 0", "it is -0.001"),
        ("optim.lr=.nan", "must be a finite number", "it is nan"),
        ("optim.lr=.inf", "must be a finite number", "it is inf"),
        ("optim.lr=fast", "must be a number", "it is 'fast'"),
        ("optim.lr=true", "must be a number", "it is True"),
        ("optim.lr=", "must be a number", "it is empty"),
        ("optim.lr=no", "no may mean the word or a truth value", "YAML 1.1"),
        ("optim.steps=0", "must be >= 1", "it is 0"),
        ("optim.steps=1.5", "must be a whole number", "it is 1.5"),
        ("optim.steps=1e3", "must be a whole number", "it is 1000.0"),
        ("optim.min_lr=1", "must be <= optim.lr (0.0004)", ""),
        ("optim.warmup_steps=91", "must be <= optim.steps (90)", ""),
        ("optim.beta1=1", "must be < 1", "it is 1"),
        ("optim.clip=-1", "must be >= 0", "it is -1"),
        ("optim.eps=0", "must be > 0", "it is 0"),
        ("model.dropout=1", "must be < 1", "it is 1"),
        ("model.dropout=-0.1", "must be >= 0", "it is -0.1"),
        ("model.context=1", "must be >= 2", "it is 1"),
        ("model.size=5B", "must be 124M, 355M, 774M or 1558M", ""),
        ("batch.micro_batch=0", "must be >= 1", "it is 0"),
        ("data.validation=0", "must be > 0", "it is 0"),
        ("data.validation=1", "must be < 1", "it is 1"),
        ("data.source=1984", "must be text; put it in quotes", "it is 1984"),
        ("data.source=''", "must not be empty", "it is ''"),
        ("data.source=no", "no may mean the word or a truth value", "YAML 1.1"),
        ('data.source="a\\0"', "must be Unicode text without NUL", "it is 'a\\x00'"),
        ("eval.prompt=\udcff", "must be Unicode text without NUL", "it is '\\udcff'"),
        ("data.text_fields=text", "must be a list, like [text]", "it is 'text'"),
        ("data.text_fields=[]", "must not be empty", "it is []"),
        ("data.text_fields=[1]", "must be text; put it in quotes", "it is 1"),
        ("data.bundled=1", "must be true or false", "it is 1"),
        ("data.tokenizer=''", "must not be empty", "it is ''"),
        (
            "data.tokenizer=bpe-256",
            "must be bpe-257 or larger: the 256 bytes and <|endoftext|> come first",
            "it is 'bpe-256'",
        ),
        ("run.compile=maybe", "must be auto, on or off", "it is 'maybe'"),
        ("run.device=tpu", "must be auto, cpu, cuda or mps", "it is 'tpu'"),
        ("eval.temperature=-1", "must be >= 0", "it is -1"),
        ("checkpoint.keep=0", "must be >= 1", "it is 0"),
        ("seed=-1", "must be >= 0", "it is -1"),
        ("seed=99999999999999999999", "must be < 9.22337e+18", "it is 99999999999999999999"),
    ],
)
def test_limits(override: str, what: str, why: str, refused: Refused, small: str) -> None:
    """Each as an override, and again in a file on its line."""
    error = refused(small, override)
    assert error.exit_code == 2
    shown = f"override {override}"
    assert error.what == f"{shown}: {what}"
    assert error.why.startswith(why)
    if "\udcff" in override:  # no UTF-8 file holds it
        return
    key, _, value = override.partition("=")
    section, _, name = key.rpartition(".")
    lines = [line for line in small.splitlines() if not line.strip().startswith(f"{name}:")]
    if section and f"{section}:" not in lines:
        lines.append(f"{section}:")
    number = lines.index(f"{section}:") + 1 if section else len(lines)
    lines.insert(number, f"  {name}: {value}" if section else f"{name}: {value}")
    expected = what.replace("0.0004", "0.0006") if "  lr: 4e-4" not in lines else what
    item = "[0]" if value == "[1]" else ""
    assert refused("\n".join(lines)).what == f"x.yaml:{number + 1} {key}{item}: {expected}"


def test_a_task_that_is_none(refused: Refused, small: str) -> None:
    error = refused(small, "task=chess")
    assert error.what == "override task=chess: must be pretrain"  # the file has said what it is for
    error = refused(small.replace("task: pretrain", "task: finetune-clasify"))
    assert error.what == "x.yaml:2 task: must be pretrain, finetune-classify or finetune-instruct"
    assert error.fix == "did you mean finetune-classify?"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("task: pretrain\n", "", "x.yaml:2 task: is missing"),
        ("  source: the-verdict\n", "", "x.yaml:3 data.source: is missing"),
        ("  steps: 90\n", "", "x.yaml:8 optim.steps: is missing"),
        ("  size: 124M\n", "", "x.yaml:5 model.size: is missing"),
        ("size: 124M", "n_head: 2", "x.yaml:5 model.n_layer: is missing"),
        (
            "size: 124M",
            "n_layer: 1\n  n_head: 3\n  n_embd: 16",
            "x.yaml:7 model.n_head: must divide n_embd (16)",
        ),
        ("size: 124M", "size: 124M\n  n_head: 3", "x.yaml:7 model.n_head: size sets it already"),
        (
            "data:\n  source: the-verdict\n",
            "data: 5\n",
            "x.yaml:3 data: must be a section of `key: value` lines",
        ),
        (
            "data:\n  source: the-verdict\n",
            "data: [a]\n",
            "x.yaml:3 data: must be a section of `key: value` lines",
        ),
        ("size: 124M", "size: {a: b}", "x.yaml:6 model.size: must be 124M, 355M, 774M or 1558M"),
    ],
)
def test_contradictions_and_gaps(old: str, new: str, what: str, refused: Refused, small: str) -> None:
    assert old in small
    error = refused(small.replace(old, new))
    assert (error.what, error.exit_code) == (what, 2)


def test_the_fixes_that_are_named_work(written: Written, refused: Refused, small: str) -> None:
    for override in ("optim.min_lr=1", "optim.warmup_steps=91"):
        load_recipe(written(small), [override, refused(small, override).fix])
    numbers = ["model.n_layer=1", "model.n_head=2", "model.n_embd=4"]
    assert "model.size=null" in refused(small, *numbers).fix
    assert load_recipe(written(small), [*numbers, "model.size=null"]).recipe.model.n_embd == 4


@pytest.mark.parametrize(
    ("override", "what", "fix"),
    [
        ("optim.learnign_rate=1", "override optim.learnign_rate=1: unknown key", "did you mean optim.lr?"),
        ("lr=1", "override lr=1: unknown key", "did you mean optim.lr?"),
        ("optm.lr=1", "override optm.lr=1: unknown key", "did you mean optim.lr?"),
        ("a.b.c=1", "override a.b.c=1: unknown key", "gpt2 recipes show verdict"),
        ("optim=3", "override optim=3: optim is a section", "did you mean optim.steps?"),
        ("optim.lr", "override optim.lr: is not key=value", "optim.lr=3e-4"),
        ("=1", "override =1: is not key=value", "optim.lr=3e-4"),
        ("", "override : is not key=value", "optim.lr=3e-4"),
    ],
)
def test_overrides_of_a_wrong_form(override: str, what: str, fix: str, refused: Refused, small: str) -> None:
    error = refused(small, override)
    assert (error.what, error.exit_code) == (what, 2)
    assert fix in error.fix


def test_a_long_override_is_shortened_in_the_message(refused: Refused, small: str) -> None:
    error = refused(small, "optim.lr=" + "x" * 10_000)
    assert len(error.what) < 200 and len(error.why) < 100


def test_an_override_of_a_broken_section_tells_of_the_section(refused: Refused, small: str) -> None:
    assert refused(small + "run: 5\n", "run.threads=1").what.startswith("x.yaml:11 run: must be a section")


def test_shipped_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"verdict", "shakespeare-char", "shakespeare", "gpt2-124m", "spam", "instruct"} <= set(
        shipped_recipes()
    )
    assert find_recipe("verdict") == find_recipe("verdict.yaml") == shipped_recipes()["verdict"]
    (tmp_path / "verdict").mkdir()
    assert find_recipe("verdict") == shipped_recipes()["verdict"]
    (tmp_path / "verdict.yaml").touch()
    assert find_recipe("verdict.yaml") == Path("verdict.yaml")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("verdct", "did you mean verdict?"),
        ("recipes/shakespear.yaml", "did you mean shakespeare?"),
        ("", "gpt2 recipes"),
    ],
)
def test_a_name_that_is_nothing(name: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for odd in (name, name + "\0", name + "x" * 5000):
        with pytest.raises(UsageError, match="no such recipe") as caught:
            find_recipe(odd)
        assert "verdict" in caught.value.why
    with pytest.raises(UsageError) as caught:
        find_recipe(name)
    assert caught.value.fix == fix


def test_recipes_of_an_installed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pyproject.toml beside the package, a folder `recipes` there is not ours."""
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "gpt2cli" / "recipe" / "shipped.py"))
    for folder, name in (("recipes", "theirs"), ("gpt2cli/recipes_shipped", "ours")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{name}.yaml").touch()
    assert list(shipped_recipes()) == ["ours"]
    (tmp_path / "pyproject.toml").touch()
    assert list(shipped_recipes()) == ["theirs"]


def test_a_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        load_recipe(str(tmp_path))


BY_NAME = ("optim.name", "optim.schedule", "optim.decay_steps")  # words, adamw and cosine


@pytest.mark.parametrize("name", ["verdict", "shakespeare-char", "shakespeare", "gpt2-124m"])
def test_shipped_recipes_load_and_follow_the_house_rules(name: str) -> None:
    loaded = load_recipe(name)
    lines = loaded.path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert read_header(loaded.path).title == lines[0].removeprefix("# ")
    assert any(line.startswith("# command:  gpt2 p") for line in lines)
    assert any(line.startswith("# measured: ") for line in lines)
    # Every number that changes the result is spelled out.
    shaping = ("model.context", "model.dropout", "seed", "batch.", "optim.")
    for key, origin in loaded.origins.items():
        if key.startswith(shaping) and key not in BY_NAME:
            assert origin != "default", key


def test_a_title_needs_a_comment(written: Written) -> None:
    assert read_header(Path(written("\n#\n#   A title  \n# more"))).title == "A title"
    assert read_header(Path(written("task: pretrain\n# later"))).title == ""
    assert read_header(Path(written(""))).title == ""


def test_a_dump_has_every_value_and_reads_back(written: Written) -> None:
    for name in shipped_recipes():
        recipe = load_recipe(name).recipe
        loaded = load_recipe(written(dump_recipe(recipe)))
        assert loaded.recipe == recipe
        unset = {key for key, _, default in recipe_fields(type(recipe)) if default is None}
        defaults = {key for key, origin in loaded.origins.items() if origin == "default"}
        assert defaults <= unset


@given(
    st.text(), st.lists(st.text(min_size=1), min_size=1, max_size=3), st.floats(1e-30, 1e30), st.booleans()
)
def test_any_values_survive_a_dump(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, names: list[str], lr: float, bundled: bool
) -> None:
    values = load_recipe("verdict").recipe.model_dump()
    values["eval"]["prompt"] = prompt.replace("\0", "")
    values["optim"]["lr"], values["optim"]["min_lr"], values["data"]["bundled"] = lr, 0, bundled
    values["data"]["text_fields"] = [name.replace("\0", "x") for name in names]
    recipe = PretrainRecipe.model_validate(values)
    path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)).recipe == recipe
    # Another program's YAML reader takes numbers for numbers and text for text, too.
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert plain["optim"]["lr"] == lr and plain["optim"]["eps"] == 1e-8
    assert plain["eval"]["prompt"] == recipe.eval.prompt


_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([1]), st.just({"a": 1})
)


@given(st.dictionaries(st.sampled_from(KEYS), _scalars, max_size=6))
def test_any_values_are_accepted_or_refused_in_our_words(values: dict[str, object]) -> None:
    nested: dict[str, object] = {"task": "pretrain"}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        target = nested.setdefault(section, {}) if section else nested
        assert isinstance(target, dict)
        target[name] = value
    try:
        PretrainRecipe.model_validate(nested)
    except loader.ValidationError as error:
        kinds = {entry["type"] for entry in error.errors()}
        assert kinds <= {*loader._MESSAGES, "not_text", "extra_forbidden"}
