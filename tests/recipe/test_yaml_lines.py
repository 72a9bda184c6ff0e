"""Bytes that are no recipe: refused with the right exit code, at once, and with a place."""

import math
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2cli.errors import Gpt2Error, InputError, UsageError
from gpt2cli.recipe import yaml_lines
from gpt2cli.recipe.loader import load_recipe

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("3e-4", 3e-4),
        ("1e-4", 1e-4),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("12", 12),
        ("-3", -3),
        ("524_288", 524288),
        ("010", 10),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("124M", "124M"),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("", None),
        ("~", None),
        ("null", None),
        ("e5", "e5"),
        ("1e", "1e"),
    ],
)
def test_plain_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    got = yaml_lines.plain_scalar(text, "x")
    assert got == value and type(got) is type(value)
    assert yaml_lines.parse(f"a: {text}", "x").values == {"a": value}


def test_nan_is_a_float() -> None:
    assert math.isnan(yaml_lines.plain_scalar(".nan", "x"))


@pytest.mark.parametrize("word", ["no", "yes", "NO", "Yes"])
def test_yes_and_no_are_refused_without_quotes(word: str) -> None:
    with pytest.raises(UsageError, match=rf"^r.yaml:2 data.source: {word} may mean") as caught:
        yaml_lines.parse(f"data:\n  source: {word}\n", "r.yaml")
    assert f'"{word}" in quotes' in caught.value.fix
    assert yaml_lines.parse(f'a: "{word}"', "x").values == {"a": word}


def test_numbers_agree_with_a_plain_loader_where_yaml_1_1_and_1_2_agree() -> None:
    text = "a: 1\nb: -2.5\nc: [x, 'y', \"z\\n\"]\nd: {e: 1.5e+3}\nf: |\n  two\n  lines\n"
    assert yaml_lines.parse(text, "x").values == yaml.safe_load(text)


def test_every_value_knows_its_line() -> None:
    document = yaml_lines.parse("a: 1\n\nb:\n  c: 2\n  d: [1,\n   2]\n", "x")
    assert document.lines == {
        (): 1,
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "d"): 5,
        ("b", "d", 0): 5,
        ("b", "d", 1): 6,
    }
    assert document.line_of(("b", "missing")) == 3
    assert document.line_of(("missing",)) == 1


def test_the_global_safe_loader_is_left_alone() -> None:
    load_recipe("verdict")
    assert yaml.safe_load("a: 3e-4\nb: on") == {"a": "3e-4", "b": True}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "x:3: a: duplicate key"),
        ("a:\n  b: 1\n  b: 1\n", "x:3: a.b: duplicate key"),
        ("a: !!python/object/apply:os.system ['touch canary']\n", "x:1: the tag tag:yaml.org,2002:python"),
        ("a: !!str 5\n", "x:1: the tag"),
        ("b: 1\na: &x 1\n", "x:2: anchors"),
        ("a: *x\n", "x:1: anchors"),
        (BOMB, "x:1: anchors"),
        ("a: [1\nb: 2\n", "x:2: not YAML"),
        ("a: 1\n\tb: 2\n", "x:2: not YAML"),
        ("a: 1\n---\nb: 1\n", "x:2: not YAML: but found another document"),
        ("? [a]\n: b\n", "x:1: a key that is not a word"),
        ("- a\n", "x:1: not a list of"),
        ("just text", "x:1: not a list of"),
        ("", "x:1: empty"),
        ("# only this\n", "x:1: empty"),
        ('a: "\\UFFFFFFFF"\n', "x:1: not YAML"),
    ],
)
def test_refused_with_the_line(text: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        yaml_lines.parse(text, "x")
    assert caught.value.what.startswith(what)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("deep", ["[" * 5000, "{a: " * 5000, "- " * 5000, "? " * 5000, "a: " + "[" * 5000])
def test_deep_nesting_ends_at_once_and_in_little_memory(deep: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(UsageError, match=r"^x:1: (nested more than 8 levels|a key that is not a word)"):
        yaml_lines.parse(deep, "x")
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10
    assert peak < 20e6


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        ("a: ü".encode("latin-1"), 3),
        ("a: b\n".encode("utf-16"), 0),
        ("a: b\n".encode("utf-16-le"), 1),
        ("a: b\n".encode("utf-16-be"), 0),
        (b"a: b\0c", 4),
        (b"\xef\xbb\xbfa: \xff", 6),
        (b"a\0\xff", 1),
        (b"a\xff\0", 1),
    ],
)
def test_what_is_not_text_is_named_by_its_byte(content: bytes, offset: int, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        yaml_lines.read_text(path, "x")
    assert caught.value.what.endswith(f" at byte {offset}") and caught.value.exit_code == 3
    assert caught.value.why


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfa: 1\nb: 2\n", b"a: 1\r\nb: 2\r\n", b"\xef\xbb\xbfa: 1\r\nb: 2"]
)
def test_bom_and_crlf_are_accepted(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    document = yaml_lines.parse(yaml_lines.read_text(path, "x"), "x")
    assert document.values == {"a": 1, "b": 2}
    assert document.lines[("b",)] == 2


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"#" * 50_001)
    with pytest.raises(InputError, match="larger than 50,000 bytes"):
        yaml_lines.read_text(path, "x")


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "loop"])
def test_what_is_not_a_file_is_refused_without_a_hang(kind: str, tmp_path: Path) -> None:
    path = {"device": Path("/dev/zero")}.get(kind, tmp_path / "x")
    make = {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}
    make.get(kind, lambda: None)()
    with pytest.raises(InputError):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("Hello: #world", "Hello: #world"),
        (" x ", "x"),
        ("' x '", " x "),
        ('"a\\n"', "a\n"),
        ("[a, 1]", ["a", 1]),
        ("{a: 1}", "{a: 1}"),
        ("&a", "&a"),
        ("", None),
    ],
)
def test_override_values_follow_the_same_rules(text: str, value: object) -> None:
    assert yaml_lines.parse_value(text, "x") == value


@pytest.mark.parametrize("text", ['"a', "[a", '"a" b', "[&a b]", "no"])
def test_override_values_that_are_not_yaml(text: str) -> None:
    with pytest.raises(UsageError, match=r"^override x"):
        yaml_lines.parse_value(text, "override x")


@given(st.binary(max_size=200))
@example(b"%YAML 99999999999999999999.1\n---\na")
@example(b'"\\U00110000"')
@example(b"\xef\xbb\xbf\xef\xbb\xbf: 1")
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        values = yaml_lines.parse(yaml_lines.read_text(path, "x"), "x").values
    except Gpt2Error as error:
        assert error.exit_code in (2, 3)
    else:
        assert isinstance(values, dict)


@given(st.text(alphabet="ab:-?[]{}&*!|>'\"%@`#,\n \t\\0123.e~=\u0085\u2028", max_size=60))
def test_any_yaml_like_text_is_read_or_refused(text: str) -> None:
    for read in (yaml_lines.parse, yaml_lines.parse_value):
        try:
            read(text, "x")
        except UsageError as error:
            assert error.what.startswith("x")


def test_a_python_tag_runs_nothing_in_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("task: !!python/object/apply:os.mkdir [canary]\n")
    code = "from gpt2cli.recipe.loader import load_recipe; load_recipe('x.yaml')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "the tag tag:yaml.org,2002:python/object/apply:os.mkdir is not allowed" in done.stderr
    assert not (tmp_path / "canary").exists()
