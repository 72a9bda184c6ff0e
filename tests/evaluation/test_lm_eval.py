"""lm-evaluation-harness on our folders, by its own `hf` model, against `gpt2 evaluate`, item by item.

Its tasks are its own, with local files in the place of the hub's data sets.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from loud import loud

from gpt2cli import bundled
from gpt2cli.checkpoints.folder import load_model, write_manifest, write_model
from gpt2cli.model.config import GPT2Config
from gpt2cli.model.gpt2 import new_model
from gpt2cli.tokenizer.bpe import gpt2 as gpt2_tokenizer

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not find_spec("lm_eval"), reason="no lm-eval here; make check-peers installs it"),
]

MINIATURES = Path(bundled.__file__).parent
CONTEXT = 72  # the longest items lose their beginning
LAMBADA = """
task: local_lambada
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
HELLASWAG = """
include: {original}
task: local_hellaswag
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}}}}}
training_split: null
"""


@pytest.fixture(scope="module", params=["random", "trained"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with loud random weights, or one that has learned the miniatures' texts by heart."""
    tokenizer = gpt2_tokenizer()
    model = new_model(GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=CONTEXT), 1)
    if request.param == "random":
        loud(model)
    else:
        learn(model, [tokenizer.encode(text) for text in texts()])
    path = tmp_path_factory.mktemp(request.param)
    write_manifest(path, write_model(path, model.eval(), tokenizer, "task: pretrain\n"))
    return path


def texts() -> list[str]:
    """All of LAMBADA's miniature, and half of HellaSwag's with the right endings."""
    read = [
        [json.loads(line) for line in (MINIATURES / f"{name}-miniature.jsonl").read_text().splitlines()]
        for name in ("lambada", "hellaswag")
    ]
    endings = [
        f"{one['activity_label']}: {one['ctx']} {one['endings'][one['label']]}" for one in read[1][::2]
    ]
    return [one["text"] for one in read[0]] + endings


def learn(model: Any, rows: list[list[int]]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        ids = torch.tensor([rows[step % len(rows)][-CONTEXT - 1 :]])
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def harness(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=4, dtype="float32")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval import tasks as harness_tasks

    folder = tmp_path_factory.mktemp("tasks")
    original = Path(harness_tasks.__file__).parent / "hellaswag" / "hellaswag.yaml"
    (folder / "utils.py").write_text((original.parent / "utils.py").read_text())
    for name, text in (("lambada", LAMBADA), ("hellaswag", HELLASWAG)):
        file = MINIATURES / f"{name}-miniature.jsonl"
        (folder / f"{name}.yaml").write_text(text.format(file=file, original=original))
    return harness_tasks.TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def theirs(folder: Path, tasks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import lm_eval

    names = ["local_lambada", "local_hellaswag"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        return lm_eval.simple_evaluate(  # as in docs/evaluation.md
            "hf",
            model_args=f"pretrained={folder}",
            device="cpu",
            tasks=names,
            task_manager=tasks,
            bootstrap_iters=0,
        )


def ours(gpt2: Any, folder: Path, name: str, miniature: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out = Path(f"{name.replace(':', '-')}.jsonl")
    outcome = gpt2("evaluate", folder, "--on", f"{name}={miniature}", "--json", "--out", out)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["metrics"], [json.loads(line) for line in out.read_text().splitlines()]


def samples(theirs: Any, task: str) -> list[dict[str, Any]]:
    return sorted(theirs["samples"][task], key=lambda sample: sample["doc_id"])


def test_lambada_word(gpt2: Any, folder: Path, theirs: Any) -> None:
    metrics, items = ours(gpt2, folder, "lambada:word", "lambada-miniature")
    found = samples(theirs, "local_lambada")
    assert len(items) == len(found) == 10
    for item, sample in zip(items, found, strict=True):
        ((logprob, greedy),) = sample["filtered_resps"]
        assert item["logprobs"] == pytest.approx([logprob], abs=1e-4)
        assert (item["greedy"], item["accuracy"]) == ([greedy], sample["acc"])
    assert any(item["n_truncated"] for item in items)
    results = theirs["results"]["local_lambada"]
    assert metrics["accuracy"]["value"] == results["acc,none"]
    assert metrics["perplexity"]["value"] == pytest.approx(results["perplexity,none"], rel=1e-4)


def test_lambada_token(gpt2: Any, folder: Path, harness: Any) -> None:
    """The harness has no such task: its model scores the ids."""
    _, items = ours(gpt2, folder, "lambada:token", "lambada-miniature")
    tokenizer = load_model(folder).tokenizer
    rows = (MINIATURES / "lambada-miniature.jsonl").read_text().splitlines()
    every = [tokenizer.encode(json.loads(row)["text"]) for row in rows]
    scores = harness._loglikelihood_tokens([(("", ""), ids[:-1], ids[-1:]) for ids in every])
    for item, (logprob, greedy) in zip(items, scores, strict=True):
        assert item["logprobs"] == pytest.approx([logprob], abs=1e-4)
        assert (item["greedy"], item["accuracy"]) == ([greedy], float(greedy))


def test_hellaswag(gpt2: Any, folder: Path, theirs: Any) -> None:
    metrics, items = ours(gpt2, folder, "hellaswag", "hellaswag-miniature")
    found = samples(theirs, "local_hellaswag")
    assert len(items) == len(found) == 10
    for item, sample in zip(items, found, strict=True):
        assert item["logprobs"] == pytest.approx([one[0] for one in sample["filtered_resps"]], abs=1e-4)
        assert (item["acc"], item["acc_norm"]) == (sample["acc"], sample["acc_norm"])
    results = theirs["results"]["local_hellaswag"]
    assert metrics["acc"]["value"] == results["acc,none"]
    assert metrics["acc_norm"]["value"] == results["acc_norm,none"]
