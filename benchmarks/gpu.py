"""What a GPU must show before its figures count: right numbers first, then speed, memory and whole commands.

    python benchmarks/gpu.py                 on one CUDA device: under 8 minutes
    python benchmarks/gpu.py --device cpu    the same checks in miniature, on any machine: two minutes
    python benchmarks/gpu.py --only model loss

Each line tells the figure that is expected and the one that was seen. The first that is wrong ends the
program with exit code 1. Nothing is downloaded; what is written goes into a folder that is removed.

A machine without a package index needs Python 3.12, torch 2.11 with its NumPy, a C compiler (for
torch.compile), this project's folder, and these wheels (cp312, or for any Python):

    annotated-doc annotated-types anyio certifi charset-normalizer click contourpy crc32c cycler filelock
    fonttools fsspec h11 hf-xet httpcore2 httpx2 huggingface-hub idna jinja2 kiwisolver markdown-it-py
    markupsafe matplotlib mdurl packaging pillow prompt-toolkit pydantic pydantic-core pygments pyparsing
    python-dateutil pyyaml regex requests rich shellingham six tiktoken tqdm truststore typer
    typing-extensions typing-inspection tzdata urllib3 wcwidth

Where there is an index, the first command collects them; the second installs them on the other machine:

    python3.12 -m pip download --only-binary :all: --constraint constraints.txt --dest wheels pydantic \\
        typer rich pyyaml tiktoken httpx2 huggingface_hub jinja2 matplotlib crc32c prompt-toolkit
    python3.12 -m pip install --no-index --no-deps wheels/*.whl
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gpu_numbers import (
    RECIPE,
    SCALES,
    Bench,
    GiB,
    WrongFigureError,
    check_decode,
    check_device,
    check_loss,
    check_model,
    check_nccl,
    check_resume,
    check_step,
    check_steps,
    tell,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project need not be installed
TEXTS = ROOT / "gpt2cli/bundled"
MiB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=SCALES)
    parser.add_argument("--only", nargs="+", default=list(CHECKS), choices=CHECKS, metavar="CHECK")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpt2-gpu-") as name:
        os.environ["GPT2_HOME"] = f"{name}/home"
        bench = Bench(options.device, Path(name), SCALES[options.device])
        os.chdir(name)
        Path("recipe.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
        gpt2(
            bench, "prepare", TEXTS / "story.txt", "--out", "tokens", "--validation", "0.1", "--block", "256"
        )
        for check in options.only:
            print(f"{check}  ({time.perf_counter() - began:.0f} s)", flush=True)
            try:
                CHECKS[check](bench)
            except WrongFigureError as error:
                sys.exit(f"stopped: {check}: {error}")
        os.chdir(ROOT)
    print(f"all as expected, in {time.perf_counter() - began:.0f} s")


def gpt2(bench: Bench, *words: object, code: int = 0, text: str = "", limit: int = 0) -> tuple[str, str]:
    """Run a command; (stdout, stderr). `limit` is of its address space, in bytes."""
    env = {key: value for key, value in os.environ.items() if key not in ("GPT2_RUNS", "GPT2_MIRROR")}
    done = subprocess.run(
        [sys.executable, "-m", "gpt2cli", *map(str, words)],
        env=env | {"PYTHONPATH": str(ROOT)},
        input=text,
        capture_output=True,
        text=True,
        cwd=bench.folder,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))) if limit else None,
    )
    if done.returncode != code:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n")
    tell(f"exit code of gpt2 {words[0]}", code, done.returncode, done.returncode == code)
    return done.stdout, done.stderr


def check_memory(bench: Bench) -> None:
    n = bench.scale.too_many
    overrides = (f"run.device={bench.device}", f"batch.micro_batch={n}", *bench.scale.shape)
    limit = 0 if bench.on_gpu else 6 * GiB
    said = gpt2(bench, "pretrain", "recipe.yaml", "--name", "large", *overrides, code=4, limit=limit)[1]
    proposal = f"batch.micro_batch={n // 2} batch.accumulation=2"
    tell("out of memory", proposal, said.strip().splitlines()[-1][:100], proposal in said)


def check_lora(bench: Bench) -> None:
    from random_models import write_folder

    write_folder(bench.folder / "base", bench.scale.lora)
    gpt2(
        *(bench, "finetune-instruct", ROOT / "recipes/instruct-lora.yaml", "--name", "lora", "init=base"),
        *(f"data.source={TEXTS / 'instructions.json'}", f"run.device={bench.device}", "optim.steps=2"),
        *("optim.warmup_steps=1", "eval.every=2", "eval.max_new_tokens=8", "data.max_tokens=128"),
    )
    n_bytes = (bench.folder / "runs/lora/last/adapter_model.safetensors").stat().st_size
    tell(f"adapter of {bench.scale.lora}", "1 to 60 MiB", f"{n_bytes / MiB:.1f} MiB", n_bytes < 60 * MiB)


def check_tours(bench: Bench) -> None:
    few, device = bench.scale.few, f"run.device={bench.device}"
    spam, messages = ROOT / "recipes/spam-tiny.yaml", f"data.source={TEXTS / 'messages.tsv'}"
    talk, records = ROOT / "recipes/instruct.yaml", f"data.source={TEXTS / 'instructions.json'}"
    gpt2(bench, "pretrain", ROOT / "tour/tour.yaml", "data.source=tokens", device, "--name", "tour", *few)

    start = ("init=runs/tour", device, "optim.lr=3e-4", "optim.steps=99")
    gpt2(bench, "finetune-classify", spam, messages, "--name", "spam", *start, *few)
    report = json.loads((bench.folder / "runs/spam/report.json").read_text(encoding="utf-8"))
    accuracy, least = report["accuracy"], 0.0 if few else 0.8
    tell("accuracy of the spam filter", f"0.9, at least {least:g}", f"{accuracy:.3f}", accuracy >= least)
    words = ("classify", "runs/spam", "Win cash now", "--json", "--device", bench.device)
    tell("a label", "spam or ham", json.loads(gpt2(bench, *words)[0])["label"])

    start = ("init=runs/tour", device, "optim.lr=2e-3", "optim.steps=200", "batch.micro_batch=16")
    shown = ("eval.every=200", "eval.max_new_tokens=12")
    gpt2(bench, "finetune-instruct", talk, records, "--name", "talk", *start, *shown, *few)
    answers = (bench.folder / "runs/talk/responses.jsonl").read_text(encoding="utf-8").splitlines()
    tell("answers to the test split", 21, len(answers), len(answers) == 21)
    words = ("chat", "runs/talk", "--device", bench.device, "--temperature", "1", "--seed", "1", "-n", "20")
    gpt2(bench, *words, text="What is the capital of Portugal?\n")
    words = ("evaluate", "runs/tour", "--on", "tokens", "--json", "--device", bench.device)
    precision = json.loads(gpt2(bench, *words)[0])["precision"]
    tell("precision of evaluate", "fp32", precision, precision == "fp32")


CHECKS: dict[str, Callable[[Bench], None]] = {
    "device": check_device,
    "model": check_model,
    "loss": check_loss,
    "steps": check_steps,
    "resume": check_resume,
    "memory": check_memory,
    "step": check_step,
    "decode": check_decode,
    "lora": check_lora,
    "tours": check_tours,
    "nccl": check_nccl,
}

if __name__ == "__main__":
    main()
