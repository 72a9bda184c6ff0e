"""How lines of a chat are read: which are commands, which are messages, and what a slip is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.cli import chat_commands
from gpt2cli.cli.chat_commands import COMMANDS, SAY, Call, parse, parse_save, parse_setting
from gpt2cli.errors import UsageError

SETTINGS = ("temperature", "top_k")


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("hello", Call(SAY, "hello")),
        (" /help", Call(SAY, " /help")),
        ("1/2", Call(SAY, "1/2")),
        ("//usr/bin", Call(SAY, "/usr/bin")),
        ("!!", Call(SAY, "!")),
        ("//", Call(SAY, "/")),
        ("/help", Call("help")),
        ("!help", Call("help")),
        ("/UNDO ", Call("undo")),
        ("/set top_k=20", Call("set", "top_k=20")),
        ("/system", Call("system")),
        ("/system Be brief.\nBe  kind. ", Call("system", "Be brief.\nBe  kind.")),
        ("!save\tmy file.json", Call("save", "my file.json")),
    ],
)
def test_a_line_is_a_message_or_a_command(line: str, call: Call) -> None:
    assert parse(line) == call


def test_every_command_can_be_called_with_both_marks() -> None:
    for command in COMMANDS:
        argument = command.argument.strip("[]").split()[0] if command.argument else ""
        for mark in "/!":
            assert parse(f"{mark}{command.name} {argument}") == Call(command.name, argument)
        assert command.help


@pytest.mark.parametrize(
    ("line", "what", "why"),
    [
        ("/udno", "there is no command '/udno'", "did you mean /undo?"),
        ("/sav x", "there is no command '/sav'", "did you mean /save?"),
        ("!cl", "there is no command '!cl'", "did you mean /clear?"),
        ("/quit", "there is no command '/quit'", "did you mean /exit?"),
        ("/", "there is no command '/'", "to say it to the model, begin with //"),
        ("! wow", "there is no command '!wow'", "to say it to the model, begin with !!"),
        ("/usr/bin/env python", "there is no command '/usr/bin/env'", "begin with //"),
        ("/undo 2", "/undo takes no argument", "there is '2'"),
        ("/save", "/save: FILE is missing", "write the conversation"),
        ("/save ", "/save: FILE is missing", "write the conversation"),
        ("/set", "/set: NAME=VALUE is missing", "change a setting"),
        ("/" + "x" * 100_000, f"there is no command '/{'x' * 38}…'", "begin with //"),
    ],
)
def test_a_command_that_is_none_says_what_helps(line: str, what: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line)
    assert caught.value.what == what
    assert why in caught.value.why
    assert caught.value.fix.startswith("/")


@given(st.text())
def test_any_line_is_read_or_refused(line: str) -> None:
    try:
        call = parse(line)
    except UsageError:
        assert line[0] in chat_commands.PREFIXES
    else:
        assert call.name in {SAY, *(command.name for command in COMMANDS)}


@given(st.text(min_size=1))
def test_any_text_can_be_said(text: str) -> None:
    assert parse(text[0] + text if text[0] in chat_commands.PREFIXES else text) == Call(SAY, text)


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("top_k=20", "top_k", "20"),
        ("top_k = 20", "top_k", "20"),
        ("top_k 20", "top_k", "20"),
        ("--top-k=20", "top_k", "20"),
        ("TOP_K=20", "top_k", "20"),
        ("top_k=20 seed=3", "top_k", "20 seed=3"),  # no number, which the setting will say
    ],
)
def test_a_setting_is_a_name_and_a_value(argument: str, name: str, value: str) -> None:
    assert parse_setting(argument, SETTINGS) == (name, value)


@pytest.mark.parametrize(
    ("argument", "what", "why", "fix"),
    [
        ("topk=3", "there is no setting 'topk'", "they are temperature, top_k", "/set top_k=3"),
        ("temp", "there is no setting 'temp'", "they are temperature, top_k", "/set temperature=VALUE"),
        ("colour=red", "there is no setting 'colour'", "they are temperature, top_k", "/show"),
        ("=5", "there is no setting ''", "they are temperature, top_k", "/show"),
        ("top_k=", "top_k has no value", "", "/set top_k=VALUE"),
        ("top_k", "top_k has no value", "", "/set top_k=VALUE"),
    ],
)
def test_a_setting_that_is_none_says_what_there_is(argument: str, what: str, why: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_setting(argument, SETTINGS)
    assert (caught.value.what, caught.value.why, caught.value.fix) == (what, why, fix)


def test_a_file_is_replaced_only_with_force() -> None:
    assert parse_save("chat.json") == ("chat.json", False)
    assert parse_save("my chat.json  --force") == ("my chat.json", True)
    assert parse_save("my--force") == ("my--force", False)
    with pytest.raises(UsageError, match="FILE is missing"):
        parse_save("--force")
