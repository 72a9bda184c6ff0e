"""`gpt2 inspect` as a person reads it and as a script does."""

import json
import math
from ast import literal_eval
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from inspected import CHARS, save, table
from runs import write_recipe
from safetensors.numpy import load_file, save_file

from gpt2cli.convert.numpy_gpt2 import reference_logits
from gpt2cli.model.config import PRESETS, GPT2Config
from gpt2cli.paths import shown_path
from gpt2cli.tokenizer.bpe import gpt2 as byte_pairs

TEXT = "the cat"


@pytest.fixture
def blank_pictures() -> None:
    """Matplotlib draws."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


Gpt2 = Callable[..., Any]


@pytest.fixture
def as_json(gpt2: Gpt2) -> Callable[..., dict[str, Any]]:
    def call(*arguments: str | Path) -> dict[str, Any]:
        outcome = gpt2("inspect", *arguments, "--json")
        assert outcome.code == 0, outcome.err
        assert outcome.out.isascii()
        assert outcome.out.count("\n") == 1
        return json.loads(outcome.out, parse_constant=lambda word: pytest.fail(word))

    return call


def test_the_modules(gpt2: Gpt2, model: Path) -> None:
    outcome = gpt2("inspect", model)
    assert (outcome.code, outcome.err) == (0, "")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model)
    assert f"GPT-2 of {theirs.num_parameters():,} parameters, not one of OpenAI's shapes" in outcome.out
    assert [row[0] for row in table(outcome.out, "modules")[:13]] == [
        *("module", "wte", "wpe", "h.0", "ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc"),
        *("mlp.c_proj", "h.1", "ln_f", "lm_head"),
    ]
    rows = {row[0]: row for row in table(outcome.out, "modules")}
    assert rows["attn.c_attn"][1:6] == ["(48,", "16)", "(48)", "816", f"{816 / theirs.num_parameters():.1%}"]
    assert rows["h.1"][:6] == ["h.1", "...", "h.2", "each", "the", "same"]
    assert "tied to wte" in " ".join(rows["lm_head"])
    assert "attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj as (in, out)" in outcome.out


@pytest.mark.parametrize(
    ("n_layer", "line"), [(1, ""), (2, "h.1 the same"), (12, "h.1 ... h.11 each the same")]
)
def test_folding(n_layer: int, line: str, gpt2: Gpt2, tmp_path: Path) -> None:
    folder = save(tmp_path / "folded", n_layer)
    outcome = gpt2("inspect", folder)
    others = [
        " ".join(row) for row in table(outcome.out, "modules") if row[0].startswith("h.") and row[0] != "h.0"
    ]
    assert len(others) == (n_layer > 1)
    assert all(row.startswith(line) for row in others)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if n_layer > 1:
        of_others = sum(p.numel() for block in theirs.transformer.h[1:] for p in block.parameters())
        assert f" {of_others:,} " in others[0]
    seen = gpt2("inspect", folder, "--prompt", TEXT)
    names = [row[0] for row in table(seen.out, "activations")]
    assert [name for name in names if name.endswith("after_mlp")] == [
        f"h.{i}.after_mlp" for i in range(n_layer)
    ]
    assert [name for name in names if name.startswith("h.1.")] == ["h.1.after_mlp"][: n_layer > 1]


def test_a_head_of_its_own_is_counted(
    as_json: Callable[..., dict[str, Any]], gpt2: Gpt2, tmp_path: Path
) -> None:
    folder = save(tmp_path / "untied", tie_word_embeddings=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    found = as_json(folder)
    assert found["parameters"] == sum(p.numel() for p in theirs.parameters())
    assert sum(module["share"] for module in found["modules"]) == pytest.approx(1)
    assert found["modules"][-1]["n_parameters"] == CHARS.n_vocab * 16
    assert "untied from wte" in gpt2("inspect", folder).out


def test_names_of_sizes(gpt2: Gpt2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=80, vocab_size=CHARS.n_vocab)
    monkeypatch.setitem(PRESETS, "124M", small)
    same, short = save(tmp_path / "same", 2), save(tmp_path / "short", 2, n_positions=9)
    assert "124M: the shape of OpenAI's small model\n" in gpt2("inspect", same).out
    assert "124M: the shape of OpenAI's small model, but with n_positions 9\n" in gpt2("inspect", short).out


def test_memory_config_and_tokenizer(gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], model: Path) -> None:
    found, text = as_json(model), gpt2("inspect", model).out
    n = found["parameters"]
    assert found["weights"]["memory_bytes"] == {"fp32": 4 * n, "bf16": 2 * n}
    assert found["kv_cache"]["token_bytes"] == {"fp32": 2 * 3 * 16 * 4, "bf16": 2 * 3 * 16 * 2}
    assert found["kv_cache"]["context_bytes"]["fp32"] == 80 * 2 * 3 * 16 * 4
    assert ["KV", "cache,", "80", "tokens", "30.0", "KiB", "15.0", "KiB"] in table(text, "memory")
    assert found["config"]["n_layer"] == 3
    assert found["tokenizer"]["fingerprint"] == CHARS.fingerprint
    assert ["end", "of", "text", f"{CHARS.end_of_text}", "'<|endoftext|>'"] in table(text, "tokenizer")
    assert found["manifest"]["weights_verified"] is False


def test_a_folder_of_somebody_else(
    gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ours = save(tmp_path / "ours")
    transformers.AutoModelForCausalLM.from_pretrained(ours).save_pretrained(tmp_path / "theirs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "theirs" / name).write_bytes((ours / name).read_bytes())
    text = gpt2("inspect", tmp_path / "theirs").out
    assert "no manifest" in text
    assert "no recipe, run or conversion is recorded" in text
    assert as_json(tmp_path / "theirs")["manifest"] is None


def test_tensors(gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], model: Path) -> None:
    wanted = load_file(model / "model.safetensors")
    found = as_json(model, "--tensors")
    assert found["manifest"]["weights_verified"] is True
    assert {t["name"]: t["shape"] for t in found["tensors"]} == {k: list(v.shape) for k, v in wanted.items()}
    for tensor in found["tensors"]:
        assert tensor["statistics"]["std"] == pytest.approx(wanted[tensor["name"]].std(dtype="f8"))
    text = gpt2("inspect", model, "--tensors").out
    assert text.splitlines()[2].startswith("verified: ")
    assert [row[0] for row in table(text, "tensors")] == ["tensor", *(t["name"] for t in found["tensors"])]


@pytest.fixture
def broken(model: Path) -> Path:
    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.ln_2.weight"][:3] = math.nan
    tensors["transformer.h.1.ln_2.bias"][:2] = math.inf
    save_file(tensors, path)
    (model / "manifest.json").unlink()
    return model


def test_what_is_not_finite(gpt2: Gpt2, broken: Path) -> None:
    outcome = gpt2("inspect", broken, "--tensors")
    assert outcome.code == 0
    rows = {row[0]: row for row in table(outcome.out, "tensors")}
    assert rows["tensor"][-2:] == ["not", "finite"]
    assert rows["transformer.h.1.ln_2.weight"][-2:] == ["3", "NaN"]
    assert rows["transformer.h.1.ln_2.bias"][-2:] == ["2", "Inf"]
    assert rows["transformer.h.0.ln_2.bias"][-1] not in ("NaN", "Inf")


def test_a_pass_that_ends_in_no_numbers(gpt2: Gpt2, broken: Path, tmp_path: Path) -> None:
    outcome = gpt2("inspect", broken, "--prompt", TEXT, "--attention", "a.png")
    assert outcome.code == 6
    assert "not finite" in outcome.err and f"fix: gpt2 inspect --tensors {broken}" in outcome.err
    assert "NaN" in outcome.out and "\nnext token\n" not in outcome.out
    assert (tmp_path / "a.png").exists()
    outcome = gpt2("inspect", broken, "--prompt", TEXT, "--json")
    assert outcome.code == 6
    seen = json.loads(outcome.out)["prompt"]
    assert seen["next"] == [] and seen["activations"][-1]["statistics"]["n_nan"] > 0


@torch.no_grad()
def test_the_prompt(gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], model: Path) -> None:
    seen = as_json(model, "--prompt", TEXT, "--top", "4")["prompt"]
    ids = CHARS.encode(TEXT)
    assert [(token["id"], token["text"]) for token in seen["tokens"]] == list(zip(ids, TEXT, strict=True))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model)
    wanted = theirs(torch.tensor([ids])).logits[0, -1].softmax(dim=-1).topk(4)
    assert [token["id"] for token in seen["next"]] == wanted.indices.tolist()
    found = [token["probability"] for token in seen["next"]]
    assert found == pytest.approx(wanted.values.tolist(), abs=1e-5)
    text = gpt2("inspect", model, "--prompt", TEXT, "--top", "4").out
    rows = table(text, "next token")
    assert [row[1] for row in rows[1:]] == [str(i) for i in wanted.indices.tolist()]
    assert [row[2] for row in rows[1:]] == [f"{p:.2%}" for p in found]
    rows = {row[0]: row[1:] for row in table(text, "prompt: 7 tokens")}
    chances = [token["probability"] for token in seen["tokens"]]
    assert rows["3"] == [str(ids[3]), f"{chances[3]:.2%}", "'", "'"] and rows["0"][1] == "-"


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_queries_are_called_rotated_only_where_they_are(positions: str, gpt2: Gpt2, tmp_path: Path) -> None:
    folder = save(tmp_path / positions, positions=positions)
    shown = gpt2("inspect", folder, "--prompt", TEXT).out
    assert "queries" in shown
    assert ("queries, rotated by position" in shown) == (positions == "rotary")


def test_the_logit_lens_of_every_block(
    gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], model: Path
) -> None:
    """Of the NumPy reference, of which each block is the last in turn."""
    raw, ids = load_file(model / "model.safetensors"), CHARS.encode(TEXT)
    config = GPT2Config(n_layer=3, n_head=2, n_embd=16, n_positions=80, vocab_size=CHARS.n_vocab)
    found = as_json(model, "--prompt", TEXT, "--top", "4")["prompt"]
    assert [len(block) for block in found["lens"]] == [len(ids)] * 3
    text = table(gpt2("inspect", model, "--prompt", TEXT, "--top", "4").out, "logit lens")
    for layer, block in enumerate(found["lens"]):
        (logits,) = reference_logits(raw, "gpt2cli", replace(config, n_layer=layer + 1), [ids])  # (T, V)
        wanted = torch.from_numpy(logits).softmax(-1)
        for position, candidates in enumerate(block):
            highest = wanted[position].topk(4)
            assert [one["id"] for one in candidates] == highest.indices.tolist()
            chances = [one["probability"] for one in candidates]
            assert chances == pytest.approx(highest.values.tolist(), abs=1e-5)
        assert text[layer][0] == f"h.{layer}"
        assert [cell for cell in text[layer] if cell.endswith("%")] == [
            f"{one['probability']:.1%}" for one in block[-1]
        ]
    assert found["lens"][-1][-1] == found["next"], "the last block's is the model's own"
    # `wanted` is now that of the whole model.
    chances = [token["probability"] for token in found["tokens"]]
    assert chances[0] is None
    assert chances[1:] == pytest.approx([float(wanted[t, ids[t + 1]]) for t in range(len(ids) - 1)], abs=1e-5)


def test_pieces_of_characters_and_controls(gpt2: Gpt2, tmp_path: Path) -> None:
    folder = save(tmp_path / "bytes", 1, byte_pairs())
    text = "\u6771\x1b[2J é"
    rows = table(gpt2("inspect", folder, "--prompt", text).out, "prompt")
    ids = byte_pairs().encode(text)
    pieces = [byte_pairs().decode_bytes([token]) for token in ids]
    assert [literal_eval(" ".join(row[3:])) for row in rows[1:]] == [
        piece if piece in (b"\xe6\x9d", b"\xb1") else piece.decode() for piece in pieces
    ]


def test_a_long_prompt_is_listed_in_part(gpt2: Gpt2, model: Path) -> None:
    rows = table(gpt2("inspect", model, "--prompt", "a" * 70).out, "prompt: 70 tokens")
    assert len(rows) == 66
    assert rows[33] == ["...", "6", "more"]
    assert (rows[32][0], rows[34][0], rows[65][0]) == ("31", "38", "69")


def test_the_empty_prompt_begins_at_end_of_text(
    gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], model: Path
) -> None:
    outcome = gpt2("inspect", model, "--prompt", "")
    assert (outcome.code, outcome.err) == (0, "the prompt is empty: starting from <|endoftext|>\n")
    assert [t["id"] for t in as_json(model, "--prompt", "")["prompt"]["tokens"]] == [CHARS.end_of_text]


def test_a_prompt_beyond_the_context(gpt2: Gpt2, model: Path) -> None:
    outcome = gpt2("inspect", model, "--prompt", "a" * 81)
    assert outcome.code == 3
    assert outcome.err.startswith("error: the prompt has 81 tokens\nwhy: this model's context holds 80\n")
    assert gpt2("inspect", model, "--prompt", "a" * 80).code == 0


def test_attention(gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], model: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    outcome = gpt2("inspect", model, "--prompt", "a$b\n", "--attention", tmp_path / "all.png")
    assert outcome.code == 0
    assert outcome.err == f"attention: 3 layers x 2 heads in {tmp_path / 'all.png'}\n"
    found = as_json(model, "--prompt", "a$b\n", "--attention", "one.png", "--layer", "2", "--head", "0")
    assert found["attention"] == {"path": "one.png", "layers": [2], "heads": [0], "tokens_drawn": 4}
    assert imread(tmp_path / "all.png").shape[0] > imread(tmp_path / "one.png").shape[0]


def test_attention_of_a_long_prompt_says_what_it_leaves_out(gpt2: Gpt2, model: Path) -> None:
    outcome = gpt2("inspect", model, "--prompt", "ab" * 36, "--attention", "a.png", "--head", "1")
    assert outcome.code == 0
    assert outcome.err.startswith("the prompt has 72 tokens: the picture shows the last 64")
    assert outcome.err.endswith("attention: 3 layers x 1 head in a.png\n")


MISTAKES: dict[tuple[str, ...], str] = {
    ("--attention", "a.png"): "--attention needs --prompt",
    ("--top", "3"): "--top needs --prompt",
    ("--prompt", "a", "--layer", "0"): "--layer needs --attention",
    ("--prompt", "a", "--head", "0"): "--head needs --attention",
    ("--prompt", "a", "--top", "0"): "--top: invalid value",
    ("--prompt", "a", "--attention", "a.pdf"): "--attention a.pdf: the picture is a PNG",
    ("--prompt", "a", "--attention", "a.png", "--layer", "3"): "--layer is 3",
    ("--prompt", "a", "--attention", "a.png", "--head", "-1"): "--head is -1",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_usage_errors(arguments: tuple[str, ...], gpt2: Gpt2, model: Path, tmp_path: Path) -> None:
    outcome = gpt2("inspect", model, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: {MISTAKES[arguments]}\n")
    assert not (tmp_path / "a.png").exists()


def test_places_where_no_picture_can_be(gpt2: Gpt2, model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "file").touch()
    for name, code in (("folder.png", 3), ("null.png", 3), ("file/x.png", 4)):
        outcome = gpt2("inspect", model, "--prompt", "a", "--attention", tmp_path / name)
        assert (outcome.code, outcome.out) == (code, ""), name
        assert str(tmp_path / name.split("/")[0]) in outcome.err
    assert (tmp_path / "null.png").is_symlink()


def test_a_prompt_that_the_characters_lack(gpt2: Gpt2, model: Path) -> None:
    assert gpt2("inspect", model, "--prompt", "A").code == 3


@pytest.mark.parametrize("arguments", [("--tensors",), ("--prompt", "a")])
def test_weights_that_were_changed(arguments: tuple[str, ...], gpt2: Gpt2, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x42")
    outcome = gpt2("inspect", model, *arguments)
    assert outcome.code == 3
    assert "the content has changed since it was written" in outcome.err


def test_a_bare_folder_of_somebody_else_can_be_converted(gpt2: Gpt2, model: Path) -> None:
    path = model / "model.safetensors"
    save_file({name.removeprefix("transformer."): t for name, t in load_file(path).items()}, path)
    (model / "manifest.json").unlink()
    outcome = gpt2("inspect", model)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith(f'error: {path}: its names lack "transformer."\n')
    assert outcome.err.endswith(f"fix: gpt2 convert {model}\n")


@pytest.mark.parametrize("command", [("inspect",), ("evaluate",), ("generate", "Once", "--model")])
def test_a_file_is_no_model_yet(command: tuple[str, ...], gpt2: Gpt2, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpt2.pt"
    path.write_bytes(b"PK")
    outcome = gpt2(*command, path)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith(f"error: {path}: is a file\n")
    assert outcome.err.endswith(f"fix: gpt2 convert {path}\n")
    part = gpt2(*command, model / "model.safetensors")
    assert part.code == 3 and part.err.endswith(f"fix: gpt2 {' '.join(command)} {model}\n")
    (tmp_path / "124M").touch()  # no size
    assert "fix: gpt2 download 124M" in gpt2(*command, "124M").err


def test_a_run_tells_where_it_comes_from(
    gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    assert gpt2("pretrain", recipe, "optim.steps=4", "eval.every=2", "--name", "mine").code == 0
    outcome = gpt2("inspect")
    checkpoint = (tmp_path / "runs" / "mine" / "best").resolve()
    assert (outcome.code, outcome.err) == (0, f"model: {shown_path(checkpoint)}\n")
    origin = {row[0]: " ".join(row[1:]) for row in table(outcome.out, "where it comes from")}
    assert origin["recipe"] == f"pretrain, on {tmp_path / 'story.txt'}, 4 steps, seed 7"
    assert origin["saved"].startswith("at step 4; best validation loss ")
    assert origin["run"] == str(tmp_path / "runs" / "mine")
    record = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())["sessions"][0]
    assert origin["session"].startswith(f"{record['started']} from step 0, cpu, ")
    assert f"torch {torch.__version__}" in origin["session"]
    assert origin["data"].startswith(f"{tmp_path / 'story.txt'} (")
    state = json.loads((checkpoint / "train_state.json").read_text())
    identity = state["identity"]
    assert origin["trained"] == f"on {identity['train tokens']:,} tokens, digest {identity['data']}"
    lineage = as_json("mine")["lineage"]
    assert lineage["recipe"]["optim"]["steps"] == 4
    assert lineage["sessions"][0]["machine.torch"] == record["machine"]["torch"]


def test_a_conversion_tells_where_it_comes_from(
    gpt2: Gpt2, as_json: Callable[..., dict[str, Any]], model: Path
) -> None:
    receipt = {
        "source": {"path": "/x/\x1b[2J124M", "format": "openai-tf", "files": {"model.ckpt.index": {}}},
        "verification": {"passed": True, "max_difference": 1.25e-10, "perplexity": math.inf},
        "notes": ["one\nnote"],
    }
    (model / "conversion.json").write_text(json.dumps(receipt))
    rows = [" ".join(row) for row in table(gpt2("inspect", model).out, "where it comes from")]
    assert rows == [
        "recipe pretrain, seed 3",
        "converted from /x/␛[2J124M (openai-tf)",
        "files model.ckpt.index",
        "verification passed, logits differ by at most 1.25e-10, perplexity inf",
        "note one note",
    ]
    assert as_json(model)["lineage"]["conversion"]["verification.perplexity"] is None


@pytest.mark.parametrize("arguments", [(), ("--tensors",), ("--prompt", "the $ cat")])
def test_lines_are_whole_in_a_narrow_pipe(
    arguments: tuple[str, ...], gpt2: Gpt2, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for columns in ("20", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("FORCE_COLOR", "1")
        texts.append(gpt2("inspect", model, *arguments).out)
    assert texts[0] == texts[1] and "\x1b" not in texts[0] and max(map(len, texts[0].splitlines())) > 60
    assert not any(line != line.rstrip() for line in texts[0].splitlines())
