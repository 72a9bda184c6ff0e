"""Faults that the suite must notice, put into a copy of the tree one by one: `python tests/mutations.py`.

Prints which test falls for each; exits 1 if a fault survives, 2 if the table below is out of date. A name
given on the command line runs the faults whose names hold it. The tree itself is never touched.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("gpt2cli", "tests", "recipes", "docs", "pyproject.toml")


class Mutation(NamedTuple):
    name: str
    file: str  # below gpt2cli/
    old: str  # must be there exactly once
    new: str
    tests: str  # below tests/


MUTATIONS = [
    Mutation(
        "targets not shifted",
        "training/pretrain_task.py",
        "return Batch(ids[:, :-1], ids[:, 1:])",
        "return Batch(ids[:, :-1], ids[:, :-1])",
        "product/test_training_step.py",
    ),
    Mutation(
        "division by the target count dropped",
        "training/loop.py",
        "optimizer_step.backward(loss_sum / n_targets)",
        "optimizer_step.backward(loss_sum)",
        "product/test_training_step.py",
    ),
    Mutation(
        "learning rate of the next step",
        "training/loop.py",
        "learning_rate(recipe.optim, step)",
        "learning_rate(recipe.optim, step + 1)",
        "product/test_training_step.py",
    ),
    Mutation(
        "betas not passed",
        "training/optimizer_step.py",
        "betas=betas, ",
        "",
        "product/test_training_step.py",
    ),
    Mutation(
        "bf16 by emulation",
        "runtime.py",
        "is_bf16_supported(including_emulation=False)",
        "is_bf16_supported()",
        "test_runtime.py",
    ),
    Mutation(
        "torch's own attention on an Apple GPU",
        "model/cpu_ops.py",
        'if q.device.type == "mps":',
        "if False:",
        "generation/test_on_gpus.py",
    ),
    Mutation(
        "logits rounded to half precision",
        "model/layers.py",
        "return F.linear(hidden.float(), weight.float())",
        "return F.linear(hidden.to(weight.dtype), weight).float()",
        "generation/test_on_gpus.py",
    ),
    Mutation(
        "fp16 gradients before the loss scale",
        "training/fused_cross_entropy.py",
        "if dtype is torch.float16:",
        "if False:",
        "training/test_fused_cross_entropy.py",
    ),
    Mutation(
        "small groups of rows on a GPU",
        "training/fused_cross_entropy.py",
        '"cuda": 1024, "mps": 1024}',
        '"cuda": 32, "mps": 1024}',
        "training/test_on_a_gpu.py",
    ),
    Mutation(
        "a wait per micro-batch",
        "training/loop.py",
        "loss_sums.append(loss_sum.detach())",
        "loss_sums.append(torch.tensor(loss_sum.item()))",
        "training/test_on_a_gpu.py",
    ),
    Mutation(
        "moments beside the report's model",
        "cli/train_command.py",
        "setup.optimizer_step.free()",
        "setup.optimizer_step.zero_grad()",
        "cli/test_finetune_classify.py",
    ),
    Mutation(
        "any fault of the compiler ends a run",
        "training/torch_compile.py",
        "except Exception as error:",
        "except (RuntimeError, OSError, ImportError) as error:",
        "training/test_torch_compile.py",
    ),
    Mutation(
        "dropout seed constant",
        "training/loop.py",
        "seed_dropout(recipe.seed, step, micro)",
        "seed_dropout(recipe.seed, 0, 0)",
        "product/test_dropout.py",
    ),
    Mutation(
        "decay on biases",
        "training/optimizer_step.py",
        '{"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0}',
        '{"params": [p for p in others if p.dim() < 2], "weight_decay": optim.weight_decay}',
        "product/test_training_step.py",
    ),
    Mutation(
        "validation from the training split",
        "training/pretrain_task.py",
        "validation, n_rows = self.data.validation,",
        "validation, n_rows = self.data.train,",
        "product/test_evaluation.py",
    ),
    Mutation(
        "end-of-text masked by id",
        "data/sft_batches.py",
        "    loss_mask = answered\n",
        "    loss_mask = answered & (ids != tokenizer.end_of_text)\n",
        "product/test_masks.py",
    ),
    Mutation(
        "an answer of weight 0 in the loss",
        "data/sft_batches.py",
        "part.in_loss or not part.is_answer",
        "True",
        "product/test_masks.py",
    ),
    Mutation(
        "the best saved step pruned",
        "training/retention.py",
        "        if path.resolve() in pointed:\n            continue\n",
        "",
        "product/test_best.py",
    ),
    Mutation(
        "the base's step 0 counted as saved",
        "training/train_state.py",
        "self._is_better(self.value, self.kept_value)",
        "self._is_better(self.value, self.best_value)",
        "product/test_best.py",
    ),
    Mutation(
        "a pin without effect",
        "training/retention.py",
        "if needing := runs_that_need(path):",
        "if needing := []:",
        "product/test_adapter_base.py",
    ),
    Mutation(
        "one of several adapters alone",
        "convert/merge_lora.py",
        "for one in stored if matrix in one.matrices)",
        "for one in stored[:1] if matrix in one.matrices)",
        "cli/test_adapters.py",
    ),
    Mutation(
        "targets of other windows scored again",
        "evaluation/scoring.py",
        "counts[row, n - window.n_scored : n] = True",
        "counts[row, :n] = True",
        "evaluation/test_perplexity.py",
    ),
    Mutation(
        "the logit lens without the last LayerNorm",
        "generation/activations.py",
        "model.lm_head(model.transformer.ln_f(part))",
        "model.lm_head(part)",
        "cli/test_inspect.py",
    ),
    Mutation(
        "log-probabilities after the filters",
        "generation/trace.py",
        "self.logprobs = chain[0].logits",
        "self.logprobs = chain[-2].logits",
        "generation/test_trace.py",
    ),
    Mutation(
        "a trace that repeats the first stage",
        "generation/trace.py",
        "found = [_probabilities(stage, row,",
        "found = [_probabilities(chain[0], row,",
        "generation/test_trace.py",
    ),
    Mutation(
        "a chat in Python without its earlier turns",
        "api/models.py",
        "conversation.recall(exchanges)",
        "conversation.recall([])",
        "api/test_api.py",
    ),
]


def main() -> int:
    wanted = [mutation for mutation in MUTATIONS if all(word in mutation.name for word in sys.argv[1:])]
    for mutation in wanted:  # all of the table before any of the work
        mutated(mutation)
    if fallen := fallen_test(None, *sorted({mutation.tests for mutation in wanted})):
        print(f"{fallen} fails as it is", file=sys.stderr)
        return 2
    survived = 0
    print(f"{'fault':<40} {'s':>4}  first test that fell")
    for mutation in wanted:
        started = time.monotonic()
        fallen = fallen_test(mutation, mutation.tests)
        survived += fallen is None
        seconds = time.monotonic() - started
        print(f"{mutation.name:<40} {seconds:>4.0f}  {fallen or 'NONE: IT SURVIVES'}", flush=True)
    print(f"{len(wanted) - survived} of {len(wanted)} faults noticed")
    return 1 if survived or not wanted else 0


def mutated(mutation: Mutation) -> str:
    """The file's text with the fault in it; exits where the old text is not there exactly once."""
    path = ROOT / "gpt2cli" / mutation.file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if (n := text.count(mutation.old)) != 1:
        print(f"{mutation.name}: gpt2cli/{mutation.file} holds its old text {n} times", file=sys.stderr)
        raise SystemExit(2)
    return text.replace(mutation.old, mutation.new)


def fallen_test(mutation: Mutation | None, *tests: str) -> str | None:
    """The first of `tests` that fails in a copy of the tree with the fault in it, or None."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for name in COPIED:
            source, copy = ROOT / name, tree / name
            shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
        if mutation:
            (tree / "gpt2cli" / mutation.file).write_text(mutated(mutation), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
            + [f"tests/{name}" for name in tests],
            cwd=tree,
            # The copy before what is installed, in the tests' own processes too.
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": folder},
            capture_output=True,
            text=True,
        )
    if done.returncode == 0:
        return None
    fallen = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not fallen:
        print(done.stdout, done.stderr, f"{mutation}: the tests did not run", sep="\n", file=sys.stderr)
        raise SystemExit(2)
    return fallen[1].removeprefix("tests/")


if __name__ == "__main__":
    raise SystemExit(main())
