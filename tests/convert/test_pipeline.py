"""Conversion as a whole: what is refused, what is proved, what survives, what the receipt says."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from words import BYTES

from gpt2cli import files as disk
from gpt2cli.checkpoints.folder import load_model, verify, write_manifest, write_model
from gpt2cli.convert import pipeline
from gpt2cli.convert import verify as verification
from gpt2cli.convert.foreign_model import ForeignModel
from gpt2cli.convert.pipeline import ConvertOptions, convert
from gpt2cli.errors import InputError, ResourceError, UsageError
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.tokenizer.files import save_tokenizer


@pytest.fixture(scope="module")
def foreign(loud_model: GPT2LMHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it: no manifest, no receipt."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("foreign")
    write_model(folder, loud_model, BYTES, "")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    theirs.save_pretrained(folder)
    (folder / "recipe.yaml").unlink()
    return folder


def run(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    return list(convert(path, out, ConvertOptions(**options)))[-1].receipt


def test_a_foreign_folder_is_proved_and_installed(
    foreign: Path, loud_model: GPT2LMHead, tmp_path: Path
) -> None:
    steps = list(convert(foreign, tmp_path / "out", ConvertOptions()))
    assert [step.phase for step in (steps[0], steps[-2], steps[-1])] == ["reading", "verifying", "done"]
    assert sum(step.phase == "writing" for step in steps) == len(load_file(foreign / "model.safetensors"))
    receipt = steps[-1].receipt
    found = receipt["verification"]
    assert found["passed"]
    assert found["max_difference"] < 1e-8
    assert found["max_difference_fp32"] < 1e-3
    assert found["perplexity"] == pytest.approx(found["perplexity_of_source"], rel=1e-6)
    verify(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "conversion.json").read_text()) == receipt
    loaded = load_model(tmp_path / "out")
    for name, tensor in loud_model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name


def test_the_receipt_names_every_tensor_and_hash(foreign: Path, tmp_path: Path) -> None:
    receipt = run(foreign, tmp_path / "out")
    source, out = load_file(foreign / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert [row["target"] for row in receipt["tensors"]] == list(out)
    assert {row["source"] for row in receipt["tensors"]} == set(source) - {"lm_head.weight"}
    for row in receipt["tensors"]:
        assert row["shape"] == list(out[row["target"]].shape)
        assert row["transposed"] is False
    files = receipt["source"]["files"]
    assert files["model.safetensors"]["sha256"] == disk.sha256_of(foreign / "model.safetensors")
    assert receipt["output"]["files"]["model.safetensors"] == disk.sha256_of(
        tmp_path / "out/model.safetensors"
    )
    assert receipt["parameters"]["count"] == sum(tensor.numel() for tensor in out.values())
    assert receipt["parameters"]["size"] is None


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_rounded_and_proved(
    dtype: str, torch_dtype: torch.dtype, foreign: Path, tmp_path: Path
) -> None:
    receipt = run(foreign, tmp_path / "out", dtype=dtype)
    assert receipt["verification"]["passed"]
    exact, rounded = load_file(foreign / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    for name, tensor in rounded.items():
        assert torch.equal(tensor, exact[name].to(torch_dtype)), name
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == str(torch_dtype)[6:]


def test_our_own_models_are_compared_only_on_request(loud_model: GPT2LMHead, tmp_path: Path) -> None:
    ours, strangers = tmp_path / "gpt2-home/models/ours", tmp_path / "sent/ours"
    for folder in (ours, strangers):
        folder.mkdir(parents=True)
        write_manifest(folder, write_model(folder, loud_model, BYTES, ""))
    assert run(ours, tmp_path / "a")["verification"] is None
    assert run(ours, tmp_path / "b", verify=True)["verification"]["passed"]
    # A manifest can be written by anybody: what lies elsewhere is somebody else's.
    assert run(strangers, tmp_path / "c")["verification"]["passed"]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()


def break_square(source: ForeignModel) -> ForeignModel:
    """What a wrong row in a format's table does: one square matrix comes the other way round."""
    name = "transformer.h.1.attn.c_proj.weight"
    row = source.tensors[name]
    broken = replace(row, load=lambda: row.load().T.contiguous())
    return replace(source, tensors={**source.tensors, name: broken})


@pytest.mark.parametrize("to", ["folder", "nanogpt"])
def test_a_wrong_table_is_caught_and_nothing_installed(
    to: str, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = pipeline._guarded
    monkeypatch.setattr(pipeline, "_guarded", lambda source: break_square(guarded(source)))
    with pytest.raises(InputError, match="does not compute what the source computes") as caught:
        run(foreign, tmp_path / "out", to=to)
    assert "differ by up to" in caught.value.why
    assert list(tmp_path.glob("*out*")) == []


def trained(model: GPT2LMHead) -> None:
    """Let the model learn the paragraph, with loud attention, which it then cannot do without."""
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight.mul_(60)
            block.attn.c_attn.weight.mul_(10)
    ids = torch.tensor([BYTES.encode(verification.PARAGRAPH)[: model.config.n_positions]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        logits = model(ids)[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 3


def test_a_source_with_its_square_matrices_turned_over(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=BYTES.n_vocab)
    model = new_model(config, seed=5)
    trained(model)
    folder = tmp_path / "foreign"
    folder.mkdir()
    write_model(folder, model, BYTES, "")
    assert run(folder, tmp_path / "right")["verification"]["passed"]
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("attn.c_proj.weight"):
            tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"h\.0\.attn\.c_proj\.weight and its like .* stored transposed"):
        run(folder, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def with_nan(foreign: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in foreign.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = float("nan")
    tensors["transformer.h.1.mlp.c_fc.bias"][5] = float("inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("to", ["folder", "nanogpt"])
def test_weights_that_are_not_finite(to: str, foreign: Path, tmp_path: Path) -> None:
    broken = with_nan(foreign, tmp_path / "broken")
    with pytest.raises(InputError, match=r"mlp\.c_fc\.bias holds values that are not finite"):
        run(broken, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()
    save_tokenizer(BYTES, tmp_path)  # beside nanoGPT's file, which holds none
    receipt = run(broken, tmp_path / "out", to=to, allow_nonfinite=True)
    assert receipt["verification"] is None
    assert any("not finite" in note for note in receipt["notes"])


@pytest.mark.parametrize("inside", [".", "sub"])
def test_source_and_target_may_not_overlap(inside: str, foreign: Path) -> None:
    with pytest.raises(UsageError, match="inside the other"):
        run(foreign, foreign / inside, force=True)


def test_a_failed_conversion_leaves_the_old_one(foreign: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(foreign, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError):
        run(with_nan(foreign, tmp_path / "broken"), out, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out"]


def test_killed_at_any_file(foreign: Path, tmp_path: Path) -> None:
    """SIGKILL as each file of the new folder appears: the old model is whole, a rerun succeeds."""
    out = tmp_path / "out"
    run(foreign, out)
    before = (out / "model.safetensors").read_bytes()
    # Forked off a process that has imported torch and computed nothing: its threads are in no fork.
    code = """
import os, signal, sys
from pathlib import Path
from gpt2cli.convert.pipeline import ConvertOptions, convert
names = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)) and ".partial-" in str(arguments[0]):
        if arguments[2] & os.O_CREAT:
            names.append(arguments[0])
            if len(names) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
for line in sys.stdin:
    nth = int(line)
    if not (child := os.fork()):
        sys.addaudithook(hook)
        for _ in convert(Path(sys.argv[1]), Path(sys.argv[2]), ConvertOptions(force=True, dtype="bf16")): pass
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, foreign, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        for nth in (2, 3, 6):
            print(nth, file=process.stdin, flush=True)
            assert os.WTERMSIG(int(process.stdout.readline())) == signal.SIGKILL
            assert (out / "model.safetensors").read_bytes() == before
            verify(out)
    run(foreign, out, force=True, dtype="bf16")
    assert load_file(out / "model.safetensors")["transformer.wte.weight"].dtype == torch.bfloat16


def test_no_room(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(ResourceError, match="bytes are needed, 1,000 are free"):
        run(foreign, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "q8_0"}, "--dtype q8_0 does not go with --to folder"),
        ({"to": "nanogpt", "dtype": "f16"}, "--dtype f16 does not go with --to nanogpt"),
        ({"to": "tensorflow", "dtype": "bf16"}, "--dtype bf16 does not go with --to tensorflow"),
    ],
)
def test_options_that_cannot_go_together(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ConvertOptions(**options)


def test_characters_are_compared_too(tmp_path: Path) -> None:
    """A small vocabulary lacks some characters of the fixed texts; what it has is compared."""
    from loud import loud

    from gpt2cli.tokenizer.chars import Chars

    tokenizer = Chars("\n abcdefghij")
    model = loud(new_model(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=13), seed=1))
    folder = tmp_path / "foreign"
    folder.mkdir()
    write_model(folder, model, tokenizer, "")
    found = run(folder, tmp_path / "out")["verification"]
    assert found["passed"]
    assert found["tokens"] == 32  # four texts, cut at the eight positions
