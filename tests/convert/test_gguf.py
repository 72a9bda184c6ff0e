"""GGUF export, opened by its owners: the reader of the gguf package, and llama.cpp itself."""

import functools
import re
import resource
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loud import loud
from torch import Tensor

from gpt2cli.checkpoints.folder import HEAD, TRANSPOSED, stored_shapes
from gpt2cli.convert.foreign_model import ForeignModel, ForeignTensor, RawTensors
from gpt2cli.convert.gguf import require_expressible, write_gguf
from gpt2cli.convert.modelfile import modelfile
from gpt2cli.errors import InputError, UsageError
from gpt2cli.generation.engine import generate
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.templates import TEMPLATES, Turn
from gpt2cli.tokenizer.base import END_OF_TEXT, AddedToken, Tokenizer
from gpt2cli.tokenizer.bpe import BPE, gpt2
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.tokenizer.merges import BYTE_OF

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

TEXTS = [
    "Every effort moves you",
    "it's we'll DON'T they've I'm 'quoted'",
    "  two   spaces\tand \t tabs  ",
    "\n\n \n\r\n  x\n",
    "naïve café, 漢字と かな, Ωmega, 12345 3.14",
    "emoji 😀👩‍👩‍👧 and é (two code points)",
    "\u3000ideographic\u00a0no-break\u2028line\x85next",
    "control \x00\x01\x1c\x7f",
    f"before {END_OF_TEXT} after",
    "",
]
ALL_ASCII = Chars.from_text([bytes(range(128)).decode()])
MANY = Chars.from_text(TEXTS)


def config_for(tokenizer: Tokenizer, **others: Any) -> GPT2Config:
    given = {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_positions": 128, **others}
    return GPT2Config(vocab_size=tokenizer.n_vocab, **given)


def source_of(model: GPT2LMHead, tokenizer: Tokenizer) -> ForeignModel:
    """What a reader of a folder would give."""
    state = model.state_dict()

    def loader(name: str) -> Callable[[], Tensor]:
        return lambda: (state[name].T if name.endswith(TRANSPOSED) else state[name]).clone()

    tensors = {
        name: ForeignTensor(name, shape, False, loader(name))
        for name, shape in stored_shapes(model.config).items()
    }
    raw = RawTensors(list(state), lambda name: state[name].numpy())
    return ForeignModel(Path("a-model"), "gpt2cli", model.config, tokenizer, tensors, raw, ())


@pytest.fixture(scope="module")
def bpe_model() -> GPT2LMHead:
    return loud(new_model(config_for(gpt2()), 1))


@pytest.fixture(scope="module")
def files(bpe_model: GPT2LMHead, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in every dtype."""
    folder = tmp_path_factory.mktemp("gguf")
    source = source_of(bpe_model, gpt2())
    paths = {dtype: folder / f"{dtype}.gguf" for dtype in ("f32", "f16", "bf16", "q8_0")}
    for dtype, path in paths.items():
        write_gguf(path, source, dtype, "Tiny")
    return paths


@functools.cache
def read(path: Path) -> Any:
    return gguf.GGUFReader(path)


def value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def test_the_owners_reader_finds_every_tensor_bit_for_bit(
    files: dict[str, Path], bpe_model: GPT2LMHead
) -> None:
    reader = read(files["f32"])
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    # llama.cpp's own table of names, not ours.
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 3)
    state = bpe_model.state_dict()
    del state[HEAD]
    assert len(found) == len(state)
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        data = found[f"{theirs.get_name(stem)}.{kind}"]
        assert data.dtype == np.float32 and data.shape == tuple(tensor.shape), name
        assert np.array_equal(data.view(np.int32), tensor.numpy().view(np.int32)), name


def test_the_owners_reader_finds_sizes_and_tokenizer(files: dict[str, Path]) -> None:
    reader = read(files["f32"])
    expected = {
        "general.architecture": "gpt2",
        "general.name": "Tiny",
        "general.file_type": gguf.LlamaFileType.ALL_F32,
        "gpt2.context_length": 128,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 256,
        "gpt2.block_count": 3,
        "gpt2.attention.head_count": 4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 50256,
        "tokenizer.ggml.eos_token_id": 50256,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: value(reader, key) for key in expected} == expected
    assert value(reader, "gpt2.attention.layer_norm_epsilon") == pytest.approx(1e-5)
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert tokens[-1] == END_OF_TEXT
    assert [bytes(BYTE_OF[c] for c in token) for token in tokens[:-1]] == gpt2().tokens[:-1]
    types = value(reader, "tokenizer.ggml.token_type")
    assert set(types[:-1]) == {gguf.TokenType.NORMAL} and types[-1] == gguf.TokenType.CONTROL
    lines = gpt2().merges_txt.decode().splitlines()
    assert value(reader, "tokenizer.ggml.merges") == lines[1:]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_matrices_are_rounded_as_the_owner_rounds_and_vectors_are_not(
    files: dict[str, Path], bpe_model: GPT2LMHead, dtype: str
) -> None:
    reader = read(files[dtype])
    exact = {tensor.name: tensor.data for tensor in read(files["f32"]).tensors}
    assert value(reader, "general.file_type") == gguf.LlamaFileType[f"MOSTLY_{dtype.upper()}"]
    for tensor in reader.tensors:
        is_matrix = exact[tensor.name].ndim == 2 and tensor.name != "position_embd.weight"
        assert tensor.tensor_type.name == (dtype.upper() if is_matrix else "F32"), tensor.name
        expected = gguf.quants.quantize(exact[tensor.name], tensor.tensor_type)
        assert tensor.data.tobytes() == expected.tobytes(), tensor.name


def opened(path: Path, **options: Any) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    # Its cache would round keys and values to f16.
    given = {"n_ctx": 256, "logits_all": True, "type_k": 0, "type_v": 0, "n_threads": 2, **options}
    return llama_cpp.Llama(str(path), verbose=False, **given)


def llama_logits(llama: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """(T, V)"""
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)])


def our_logits(model: GPT2LMHead, ids: list[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


@pytest.mark.parametrize("name", ["gpt2", "ascii", "characters", "own bpe"])
def test_llama_splits_texts_into_the_same_ids_and_back(name: str, tmp_path: Path) -> None:
    tokenizer = {"gpt2": gpt2(), "ascii": ALL_ASCII, "characters": MANY, "own bpe": own_bpe()}[name]
    path = tmp_path / "vocabulary.gguf"
    write_gguf(path, source_of(loud(new_model(config_for(tokenizer, n_layer=1), 1)), tokenizer), "f32", "v")
    llama = opened(path, vocab_only=True)
    for text in TEXTS:
        if tokenizer is ALL_ASCII:
            text = text.encode("ascii", "ignore").decode()
        ids = tokenizer.encode(text)
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == ids, text
        assert llama.detokenize(ids) == text.encode()
    assert llama.tokenize(END_OF_TEXT.encode(), add_bos=False, special=True) == [tokenizer.end_of_text]
    assert llama.token_eos() == tokenizer.end_of_text


def test_llama_passes_over_characters_that_are_not_in_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    write_gguf(path, source_of(loud(new_model(config_for(ALL_ASCII, n_layer=1), 1)), ALL_ASCII), "f32", "v")
    llama = opened(path, vocab_only=True)
    found = llama.tokenize("naïve 😀!".encode(), add_bos=False, special=False)
    assert found == ALL_ASCII.encode("nave !")


def own_bpe() -> BPE:
    """GPT-2's first 400 tokens, and a control token of its own."""
    full = gpt2()
    n_merges = 400 - 256
    tokens = [*full.tokens[:400], b"<|user|>", END_OF_TEXT.encode()]
    return BPE(
        tokens, full.merges[:n_merges], [AddedToken(400 + i, tokens[400 + i].decode()) for i in range(2)]
    )


def test_llama_computes_the_same_logits_and_greedy_continuations(
    files: dict[str, Path], bpe_model: GPT2LMHead
) -> None:
    llama = opened(files["f32"])
    for prompt in ("Every effort moves you", "1 2 3", "naïve 😀", "The"):
        ids = gpt2().encode(prompt)
        steps = generate(bpe_model, [ids], SamplingOptions(temperature=0.0), 64)
        ours = ids + [token for step in steps for token in step.ids if token is not None]
        theirs = list(ids)
        llama.reset()
        llama.eval(ids)
        for _ in range(64):
            theirs.append(int(llama.scores[len(theirs) - 1].argmax()))
            llama.eval(theirs[-1:])
        # Its GELU is a table in f16, so a tie closer than that may be broken the other way.
        same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))
        a, b = our_logits(bpe_model, ours[:same]), llama_logits(llama, ours[:same])
        assert np.abs(a - b).max() < 5e-3
        if same < len(ours):
            assert a[-1, ours[same]] - a[-1, theirs[same]] < 1e-2, "not a tie"


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 0.02), ("bf16", 0.15), ("q8_0", 0.4)])
def test_rounded_models_compute_nearly_the_same(
    files: dict[str, Path], bpe_model: GPT2LMHead, dtype: str, tolerance: float
) -> None:
    ids = gpt2().encode("Every effort moves you closer to the sea, 12 times.")
    llama = opened(files[dtype])
    if dtype == "q8_0" and b"AMX_INT8 = 1" in sys.modules["llama_cpp"].llama_print_system_info():
        pytest.skip("llama.cpp's AMX kernels crash on q8_0 rows as short as these (seen with 0.3.36)")
    a, b = our_logits(bpe_model, ids), llama_logits(llama, ids)
    assert np.abs(a - b).max() < tolerance < a.std()


@pytest.mark.parametrize("tokenizer", [gpt2(), ALL_ASCII], ids=["gpt2", "ascii"])
def test_an_untied_head_and_an_odd_shape_compute_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    odd = {"n_head": 3, "n_embd": 42, "n_inner": 70, "n_positions": 33, "layer_norm_epsilon": 1e-3}
    model = loud(new_model(config_for(tokenizer, tie_word_embeddings=False, **odd), 1))
    path = tmp_path / "odd.gguf"
    write_gguf(path, source_of(model, tokenizer), "f32", "odd")
    ids = tokenizer.encode("Every effort moves")
    assert np.abs(our_logits(model, ids) - llama_logits(opened(path), ids)).max() < 5e-3


def test_one_tensor_at_a_time_is_in_memory(bpe_model: GPT2LMHead, tmp_path: Path) -> None:
    source = source_of(bpe_model, gpt2())
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def watched(load: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            nonlocal most
            tensor = load()
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            return tensor

        return call

    for name, tensor in source.tensors.items():
        source.tensors[name] = ForeignTensor(name, tensor.shape, False, watched(tensor.load))
    write_gguf(tmp_path / "m.gguf", source, "f32", "m")
    assert len(alive) == len(source.tensors) and most == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError])
def test_a_write_that_is_cut_short_leaves_the_old_file(
    bpe_model: GPT2LMHead, tmp_path: Path, stop: type[BaseException]
) -> None:
    source = source_of(bpe_model, gpt2())
    name = list(source.tensors)[-3]

    def fail() -> Tensor:
        raise stop("stopped")

    source.tensors[name] = ForeignTensor(name, source.tensors[name].shape, False, fail)
    path = tmp_path / "m.gguf"
    with pytest.raises(stop):
        write_gguf(path, source, "f32", "m")
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(stop):
        write_gguf(path, source, "f32", "m")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_says_so(bpe_model: GPT2LMHead, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, hard))
        with pytest.raises(OSError) as caught:
            write_gguf(tmp_path / "m.gguf", source_of(bpe_model, gpt2()), "f32", "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno and list(tmp_path.iterdir()) == []


def test_rows_that_are_no_whole_blocks_are_refused_in_q8_0(tmp_path: Path) -> None:
    source = source_of(loud(new_model(config_for(ALL_ASCII, n_embd=40), 1)), ALL_ASCII)
    with pytest.raises(InputError, match="cannot be a GGUF file in q8_0: n_embd is 40") as caught:
        write_gguf(tmp_path / "m.gguf", source, "q8_0", "m")
    assert "--dtype f16" in caught.value.fix and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_numbers_beyond_the_range_are_refused(dtype: str, tmp_path: Path) -> None:
    model = loud(new_model(config_for(ALL_ASCII), 1))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 4] = 1e7
    source = source_of(model, ALL_ASCII)
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc\.weight holds 1e\+07") as caught:
        write_gguf(tmp_path / "m.gguf", source, dtype, "m")
    assert "--dtype bf16" in caught.value.fix
    write_gguf(tmp_path / "m.gguf", source, "bf16", "m")


def test_a_vocabulary_of_another_size_is_refused(bpe_model: GPT2LMHead, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tokenizer has 129 tokens, the model 50257"):
        write_gguf(tmp_path / "m.gguf", source_of(bpe_model, ALL_ASCII), "f32", "m")


def test_without_the_package_the_way_to_get_it_is_said(
    bpe_model: GPT2LMHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match="GGUF needs the package gguf") as caught:
        write_gguf(tmp_path / "m.gguf", source_of(bpe_model, gpt2()), "f32", "m")
    assert caught.value.fix == "pip install gguf"


def test_what_cannot_be_is_known_without_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(ALL_ASCII, n_embd=40, n_inner=64)
    require_expressible(config, ALL_ASCII, "f16")
    require_expressible(config_for(ALL_ASCII), ALL_ASCII, "q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    # What no package helps with is said first.
    for wrong, dtype, said in (
        (config, "q8_0", "n_embd is 40"),
        (config_for(ALL_ASCII, n_inner=72), "q8_0", "n_inner is 72"),
        (config_for(gpt2()), "f16", "the tokenizer has 129 tokens, the model 50257"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            require_expressible(wrong, ALL_ASCII, dtype)
        assert caught.value.fix
    with pytest.raises(UsageError, match="GGUF needs the package gguf"):
        require_expressible(config, ALL_ASCII, "f16")


def test_the_modelfile_of_a_base_model_continues_text() -> None:
    text = modelfile("m.gguf", 64, None, gpt2())
    assert text == "FROM ./m.gguf\nPARAMETER num_ctx 64\nTEMPLATE {{ .Prompt }}\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_modelfile_of_a_chat_model_writes_the_template(name: str) -> None:
    """Its pieces, put together as Go's template would for one question, are the prompt of training."""
    template = TEMPLATES[name]
    text = modelfile("m.gguf", 64, template, gpt2())
    (body,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.S)
    default = "".join(re.findall(r'SYSTEM """(.*?)"""', text, re.S))
    with_system = re.fullmatch(r"{{ if \.System }}(.*?){{ end }}(.*)", body, re.S)
    assert with_system
    turn = re.fullmatch(
        r'{{ range \.Messages }}{{ if eq \.Role "user" }}(.*?){{ else if eq \.Role "assistant" }}'
        r"(.*?){{ \.Content }}<\|endoftext\|>{{ end }}{{ end }}(.*)",
        with_system[2],
        re.S,
    )
    assert turn and turn[2] == turn[3] == template.reply
    question = turn[1].replace("{{ .Content }}", "Why?") + turn[3]
    for system in (None, "Be brief."):
        given = default if system is None else system
        begun = with_system[1].replace("{{ .System }}", given) if given else ""
        turns = [Turn("system", system)] if system else []
        assert begun + question == template.prompt([*turns, Turn("user", "Why?")])
    assert re.findall(r'PARAMETER stop """(.*?)"""', text, re.S) == list(template.stops)
