"""Models with end, begin and padding tokens of their own, and with a chat template, beside transformers."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teaching import write_teaching
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from gpt2cli.convert.pipeline import ConvertOptions, convert
from gpt2cli.data.instructions import InstructionRecord
from gpt2cli.data.sft_batches import encode_record
from gpt2cli.evaluation.eval_text import encode_documents
from gpt2cli.jinja_template import read_jinja_template
from gpt2cli.templates import TEMPLATES, Turn, prompt_ids, write_template
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2 as gpt2_tokenizer
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.files import load_tokenizer, save_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DIALOGPT = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}\n"
    "  {% if message['role'] == 'user' %}[Q] {{ message['content'] | trim }}\n"
    "  {% else %}[A] {{ message['content'] }} {{ eos_token }}{% endif %}\n"
    "{% endfor %}"
)
# Trainers' mark around answers, as in recent templates, and a question about tools, of which there are none.
MARKED = (
    "{% for message in messages %}{% if message.role == 'assistant' %}\n{% set end = eos_token %}"
    "{%- generation %} {{ message.content }}{{ end }}\n{%- endgeneration %}\n{% else %}{{ message.content }}"
    "{% endif %}{% endfor %}{% if tools is not none %}tools{% endif %}{{ documents }}{{ end }}"
)
PROMPT = "Every effort moves"
IM_END, IM_START, PAD = 50257, 50258, 50259
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 whose greedy text ends with <|im_end|>, saved by transformers with all that it knows."""
    place = tmp_path_factory.mktemp("own") / "im"
    save_tokenizer(gpt2_tokenizer(), place.parent)
    tokenizer = GPT2TokenizerFast.from_pretrained(place.parent, eos_token="<|im_end|>", pad_token="[PAD]")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|im_start|>", "[PAD]")}
    assert sorted(ids.values()) == [50257, 50258, 50259]
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    own = {"bos_token_id": 50256, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["[PAD]"]}
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=50260, initializer_range=0.35, **own
    )
    model = GPT2LMHeadModel(config).eval()
    prompt = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    text = model.generate(prompt, do_sample=False, max_new_tokens=12, eos_token_id=None)[0, prompt.shape[1] :]
    with torch.no_grad():  # where the seventh token would come, the end comes
        embedding = model.transformer.wte.weight
        embedding[ids["<|im_end|>"]] = embedding[text[6]] * 1.05
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, **(own | {"eos_token_id": [ids["<|im_end|>"], 50256]})
    )
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def ours(folder: Path) -> Path:
    """The same, converted. Do not change it."""
    list(convert(folder, folder.parent / "ours", ConvertOptions()))
    return folder.parent / "ours"


def theirs(folder: Path, prompt: str, n: int = 12) -> tuple[list[int], str]:
    """transformers' greedy continuation: ids without the token that ended it, and its text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    given = torch.tensor([tokenizer(prompt)["input_ids"]])
    found = model.generate(given, do_sample=False, temperature=1.0, max_new_tokens=n)[
        0, given.shape[1] :
    ].tolist()
    ends = model.generation_config.eos_token_id
    if found[-1] in (ends if isinstance(ends, list) else [ends]):
        found.pop()
    return found, tokenizer.decode(found)


def test_generation_stops_where_transformers_does_before_and_after_convert(
    folder: Path, tmp_path: Path, gpt2: Run
) -> None:
    ids, text = theirs(folder, PROMPT)
    assert 0 < len(ids) < 12
    converted = tmp_path / "converted"
    receipt = json.loads(gpt2("convert", folder, "--out", converted, "--json").out)
    again = tmp_path / "again"
    gpt2("convert", converted, "--out", again)
    for place in (converted, again):
        answer = gpt2("generate", PROMPT, "--model", place, "--temperature", "0", "-n", "12", "--json")
        found = json.loads(answer.out)
        assert (found["ids"], found["text"], found["finish_reason"]) == (ids, text, "end_of_text")
        assert theirs(place, PROMPT) == (ids, text)
        assert json.loads((place / "generation_config.json").read_text())["temperature"] == 0.7
        own, kept = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(place)
        messages = [{"role": "user", "content": "Why?"}]
        assert kept.apply_chat_template(messages, tokenize=False) == own.apply_chat_template(
            messages, tokenize=False
        )
        batch = ["a", "b c"]
        assert kept(batch, padding=True)["input_ids"] == own(batch, padding=True)["input_ids"]
        assert (kept.eos_token_id, kept.pad_token_id) == (own.eos_token_id, own.pad_token_id)
    assert "generation_config.json" in receipt["kept"] and "chat_template.jinja" in receipt["kept"]


def test_inspect_shows_them(ours: Path, gpt2: Run) -> None:
    shown = re.sub(r" +", " ", gpt2("inspect", ours).out)
    pad = load_tokenizer(ours).special.pad
    for row in (f"end of text {IM_END} ", f"generation stops at {IM_END} ", f"padding {pad} "):
        assert row in shown
    assert json.loads(gpt2("inspect", ours, "--json").out)["tokenizer"]["special"]["stops"] == [IM_END, 50256]


def test_batches_stop_there_too(folder: Path, ours: Path, gpt2: Run) -> None:
    options = ["--temperature", "0", "-n", "12", "--num-samples", "3", "--json"]
    lines = gpt2("generate", PROMPT, "--model", ours, *options).out.splitlines()
    assert [json.loads(line)["ids"] for line in lines] == [theirs(folder, PROMPT)[0]] * 3


def test_control_tokens_in_a_prompt(folder: Path, ours: Path, gpt2: Run) -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    options = ["--model", ours, "--temperature", "0", "-n", "8", "--json"]
    found = gpt2("generate", prompt, *options, "--special")
    answer = json.loads(found.out)
    assert "ordinary text" not in found.err
    assert answer["prompt_tokens"] == len(AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"])
    assert (answer["ids"], answer["text"]) == theirs(folder, prompt, 8)
    plain = gpt2("generate", prompt, *options)
    assert "<|im_end|> is read as ordinary text; --special reads it as one token" in plain.err
    assert json.loads(plain.out)["prompt_tokens"] == len(gpt2_tokenizer().encode(prompt))
    # The model's own template writes the same prompt around the question.
    asked = gpt2("generate", "Hi", *options, "--template")
    assert json.loads(asked.out)["ids"] == answer["ids"]
    asked_with = gpt2("generate", "Hi <|im_end|>", *options, "--template")  # as transformers reads it there
    assert "<|im_end|> is read as one token\n" in asked_with.err
    assert "instruction-tuned with its own template: use gpt2 chat, or --template" in plain.err
    assert "instruction-tuned" not in asked.err


def test_chat_uses_the_models_own_template(
    folder: Path, ours: Path, gpt2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--temperature", "0", "-n", "5", "--json"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\nWhy?\n")))
    found = gpt2("chat", ours, *options, "--system", "Be brief.")
    assert "continuation mode" not in found.err
    turns = [json.loads(line) for line in found.out.splitlines()]
    messages = [{"role": "system", "content": "Be brief."}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question, turn in zip(("Hi", "Why?"), turns, strict=True):
        messages.append({"role": "user", "content": question})
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert turn["prompt_tokens"] == len(asked)
        messages.append({"role": "assistant", "content": turn["reply"]})


@pytest.mark.parametrize("template", [CHATML, DIALOGPT, STRICT, MARKED])
def test_a_jinja_template_gives_transformers_ids(template: str, folder: Path, tmp_path: Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder, chat_template=template)
    reference.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ours, found = load_tokenizer(tmp_path), read_jinja_template(tmp_path)
    assert found
    for texts in (["Hi"], ["Hi", " Hello <|im_end|>!", "né 😀"], ["a\n\n", "", " b"]):
        roles = ["user", "assistant"] * 2
        turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]  # type: ignore[arg-type]
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        asked = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found.prompt_ids(turns, ours) == asked


def test_a_template_that_refuses_says_so(
    ours: Path, tmp_path: Path, gpt2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ours, tmp_path / "m")
    for template, said in (
        (STRICT, "roles must alternate"),
        ("{{ ().__class__.__mro__ }}", "unsafe"),
        ("{% for %}", "end of statement block"),
        ("{{ messages[9].content }}", "no element 9"),
    ):
        (tmp_path / "m" / "manifest.json").unlink(missing_ok=True)
        (tmp_path / "m" / "chat_template.jinja").write_text(template)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
        found = gpt2("chat", tmp_path / "m", "--system", "x")
        assert found.code == 3
        for words in (said, "chat template cannot write this conversation"):
            assert re.sub(r"\s", "", words) in re.sub(r"\s", "", found.err)


ODD = [
    "Why?",
    " two  spaces ",
    "naïve 😀\n\nlines",
    "### Response:\n",
    "x" * 40,
    "1 + 1 = 2",
    "\tTab",
    "Zażółć",
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["gpt2", "bos", "chars"])
def test_our_templates_give_the_same_ids_in_transformers(name: str, kind: str, tmp_path: Path) -> None:
    asked = [[Turn("user", "u")], [Turn("system", "s"), Turn("user", "u")]]
    text = "".join([*ODD, *(template.prompt(turns) for template in TEMPLATES.values() for turns in asked)])
    tokenizer: Tokenizer = Chars.from_text(text) if kind == "chars" else gpt2_tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    if kind == "bos":
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))
        tokenizer = load_tokenizer(tmp_path)
    write_template(tmp_path, name, tokenizer)
    GPT2Config().save_pretrained(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for n in range(50):
        turns = [Turn("system", ODD[n % 7])] if n % 3 == 0 else []
        for k in range(n % 4):
            # An answer with white space in front would join the line feed before it, as text.
            turns += [Turn("user", ODD[(n + k) % 8]), Turn("assistant", ODD[(n + 3 * k) % 8].lstrip())]
        turns.append(Turn("user", ODD[n % 8]))
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        theirs = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt_ids(TEMPLATES[name], turns, tokenizer) == theirs


def test_a_gguf_holds_them(folder: Path, tmp_path: Path, gpt2: Run) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    out = tmp_path / "m.gguf"
    receipt = json.loads(gpt2("convert", folder, "--to", "gguf", "--out", out, "--json").out)
    fields = gguf.GGUFReader(out).fields
    special = load_tokenizer(folder).special
    expected = {
        "tokenizer.ggml.eos_token_id": special.eos,
        "tokenizer.ggml.eot_token_id": 50256,
        "tokenizer.ggml.bos_token_id": 50256,
        "tokenizer.ggml.padding_token_id": special.pad,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }
    assert {name: fields[name].contents() for name in expected} == expected
    text = Path(receipt["modelfile"]).read_text()
    assert text.splitlines()[0] == "FROM ./m.gguf" and 'PARAMETER stop """<|im_end|>"""' in text


def asked_of_llama(path: Path, messages: list[dict[str, str]], n: int) -> tuple[list[int], str]:
    """The ids of the prompt in llama.cpp's chat completion, and its greedy reply."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    llama = llama_cpp.Llama(str(path), n_ctx=64, n_threads=2, type_k=0, type_v=0, verbose=False)
    answer = llama.create_chat_completion(messages, temperature=0, max_tokens=n, repeat_penalty=1.0)
    n_prompt = answer["usage"]["prompt_tokens"]
    return llama.input_ids[:n_prompt].tolist(), answer["choices"][0]["message"]["content"]


def test_llama_asks_with_the_models_own_template(folder: Path, ours: Path, tmp_path: Path, gpt2: Run) -> None:
    gpt2("convert", folder, "--to", "gguf", "--out", tmp_path / "m.gguf")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    asked = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    ids, reply = asked_of_llama(tmp_path / "m.gguf", messages, 8)
    assert ids == asked
    prompt = AutoTokenizer.from_pretrained(folder).decode(asked)
    assert reply == theirs(folder, prompt, 8)[1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_llama_asks_with_our_templates(name: str, ours: Path, tmp_path: Path, gpt2: Run) -> None:
    folder = tmp_path / "m"
    shutil.copytree(ours, folder)
    (folder / "manifest.json").unlink()
    tokenizer = load_tokenizer(folder)
    write_template(folder, name, tokenizer)
    assert gpt2("convert", folder, "--to", "gguf", "--out", tmp_path / "m.gguf").code == 0
    for turns in (
        [Turn("user", "Why?")],
        [Turn("system", "No."), Turn("user", "a\n"), Turn("assistant", "b"), Turn("user", "naïve 😀")],
    ):
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        ids, _ = asked_of_llama(tmp_path / "m.gguf", messages, 1)
        assert ids == prompt_ids(TEMPLATES[name], turns, tokenizer)


def test_a_fine_tuned_answer_ends_with_the_models_own_token(ours: Path, tmp_path: Path, gpt2: Run) -> None:
    recipe = write_teaching(tmp_path, init=str(ours))
    found = gpt2("finetune-instruct", recipe, "optim.steps=2", "--dry-run")
    assert found.code == 0, found.err
    done = gpt2("finetune-instruct", recipe, "optim.steps=2")
    assert done.code == 0, done.err
    checkpoint = Path("runs/teach/last")
    special = load_tokenizer(checkpoint).special
    assert special == load_tokenizer(ours).special
    record = InstructionRecord(0, "here", (Turn("user", "Why?"), Turn("assistant", "So.")))
    example = encode_record(record, TEMPLATES["chat"], load_tokenizer(checkpoint), 64, mask_prompt=True)
    assert example and example.ids[-1] == special.eos
    reference = AutoTokenizer.from_pretrained(checkpoint)
    assert reference.eos_token == "<|im_end|>" and reference.pad_token == "[PAD]"
    assert GenerationConfig.from_pretrained(checkpoint).eos_token_id == list(special.stops)


def test_each_document_begins_with_the_bos_that_a_tokenizer_adds(tmp_path: Path, gpt2: Run) -> None:
    folder = tmp_path / "bos"
    folder.mkdir()
    save_tokenizer(gpt2_tokenizer(), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))
    lines = [{"text": text} for text in ("One two.", "Three", "four five six")]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--tokenizer", folder, "--out", "tokens", "--validation", "0", "--block", "4"]
    done = gpt2("prepare", "texts.jsonl", *options)
    assert done.code == 0, done.err
    ids = np.fromfile(next(Path("tokens").glob("train-*.bin")), "<u2").tolist()
    reference = AutoTokenizer.from_pretrained(folder)
    end = reference.eos_token_id
    assert ids == [id for line in lines for id in (*reference(line["text"])["input_ids"], end)]
    encoded = encode_documents([line["text"] for line in lines], load_tokenizer(folder), "texts")
    assert encoded.ids.tolist() == [id for line in lines for id in reference(line["text"])["input_ids"]]


def test_a_folder_without_tokenizer_files_stops_where_its_config_says(tmp_path: Path, gpt2: Run) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, n_positions=32, initializer_range=0.35, eos_token_id=[13, 198]
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "bare")
    found = gpt2("convert", tmp_path / "bare", "--out", tmp_path / "m")
    assert found.code == 0 and "GPT-2's vocabulary of 50257 is taken" in found.err
    assert load_tokenizer(tmp_path / "m").special.stops == (13, 198)
    assert GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == [13, 198]


def test_an_added_token_without_a_row_is_left_out(tmp_path: Path, gpt2: Run) -> None:
    """A padding token that was added without a resize: what many fine-tunes of 2020 to 2023 have."""
    torch.manual_seed(0)
    folder = tmp_path / "unresized"
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=32)).save_pretrained(folder)
    save_tokenizer(gpt2_tokenizer(), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    found = gpt2("convert", folder, "--out", tmp_path / "m")
    assert found.code == 0, found.err
    assert "added tokens without a row in the embedding were left out: [PAD]" in found.err
    assert load_tokenizer(tmp_path / "m") is gpt2_tokenizer()
