"""Live parity with transformers: logits, gradients, greedy text, and the folder both ways."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from loud import loud
from torch.nn.functional import cross_entropy

from gpt2cli.checkpoints.folder import TRANSPOSED, load_model, write_manifest, write_model
from gpt2cli.generation.engine import generate
from gpt2cli.generation.sampling import SamplingOptions
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import GPT2LMHead, new_model
from gpt2cli.tokenizer.base import Tokenizer
from gpt2cli.tokenizer.bpe import gpt2 as gpt2_tokenizer
from gpt2cli.tokenizer.chars import Chars
from gpt2cli.training.fused_cross_entropy import cross_entropy_sum

Reference = transformers.GPT2LMHeadModel


def reference_of(model: GPT2LMHead) -> Reference:
    """transformers' model with the same weights, filled here and not by our own writer."""
    config = model.config
    theirs = Reference(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    state = {name: t.T if name.endswith(TRANSPOSED) else t for name, t in model.state_dict().items()}
    theirs.load_state_dict(state)
    return theirs.eval()


@pytest.fixture(scope="module")
def loud_model() -> GPT2LMHead:
    """Of GPT-2's own vocabulary."""
    return loud(new_model(GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=64), seed=1))


@pytest.fixture(scope="module")
def theirs(loud_model: GPT2LMHead) -> Reference:
    return reference_of(loud_model)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 50257, (3, 64), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_logits_agree(loud_model: GPT2LMHead, theirs: Reference, ids: torch.Tensor) -> None:
    ours, reference = loud_model(ids), theirs(ids).logits
    assert reference.std() > 0.5, "weights this small would hide mistakes"
    torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)


def test_loss_and_gradients_agree(loud_model: GPT2LMHead, theirs: Reference, ids: torch.Tensor) -> None:
    inputs, targets = ids[:, :-1], ids[:, 1:]
    theirs.zero_grad()
    reference_loss = cross_entropy(theirs(inputs).logits.flatten(0, 1), targets.flatten())
    reference_loss.backward()
    ours = GPT2LMHead(loud_model.config)
    ours.load_state_dict(loud_model.state_dict())
    hidden = ours.transformer(inputs).flatten(0, 1)
    loss = cross_entropy_sum(hidden, ours.lm_head.weight, targets.flatten(), torch.float32) / targets.numel()
    loss.backward()
    assert loss.item() == pytest.approx(reference_loss.item(), abs=1e-5)
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = reference[name].grad
        wanted = wanted.T if name.endswith(TRANSPOSED) else wanted
        torch.testing.assert_close(
            parameter.grad, wanted, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_greedy_continuations_are_identical(loud_model: GPT2LMHead, theirs: Reference) -> None:
    generator = torch.Generator().manual_seed(5)
    wide = GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=96, vocab_size=50257)
    model = loud(new_model(wide, 2))
    reference = reference_of(model)
    for _ in range(4):
        prompt = torch.randint(0, 50257, (1, 16), generator=generator)
        wanted = reference.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 16:]
        steps = generate(model, [prompt[0].tolist()], SamplingOptions(temperature=0.0), 64)
        assert [step.ids[0] for step in steps] == wanted.tolist()


TEXT = "It was the -- Verdict!\n\n naïve 東京 🙂  end"


@pytest.mark.parametrize("make", [gpt2_tokenizer, lambda: Chars.from_text([TEXT])], ids=["bpe", "chars"])
@torch.no_grad()
def test_transformers_opens_our_folder(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    tokenizer = make()
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=64, vocab_size=tokenizer.n_vocab)
    model = loud(new_model(config, 3))
    write_manifest(tmp_path, write_model(tmp_path, model, tokenizer, "task: pretrain\n"))

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = their_tokenizer(TEXT)["input_ids"]
    assert ids == tokenizer.encode(TEXT)
    assert their_tokenizer.decode(ids, clean_up_tokenization_spaces=False) == TEXT
    assert their_tokenizer.eos_token_id == tokenizer.end_of_text == theirs.config.eos_token_id
    x = torch.tensor([ids])
    torch.testing.assert_close(model(x), theirs(x).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_we_open_their_folder(theirs: Reference, ids: torch.Tensor, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    from gpt2cli.tokenizer.files import save_tokenizer

    save_tokenizer(gpt2_tokenizer(), tmp_path)
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)  # as they would store it
    ours = load_model(tmp_path)
    torch.testing.assert_close(ours.model(ids), theirs(ids).logits, atol=1e-4, rtol=0)
    assert ours.tokenizer.encode("Every effort moves you") == gpt2_tokenizer().encode(
        "Every effort moves you"
    )
