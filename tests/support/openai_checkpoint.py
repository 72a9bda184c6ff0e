"""A checkpoint as OpenAI published them, made by TensorFlow alone; and one read by TensorFlow alone.

Run as a program, in a process of its own, so that the tests' process never imports TensorFlow:
    python openai_checkpoint.py make FOLDER '{"n_layer": 2, ...}' [truth [sharded]]
    python openai_checkpoint.py mixed FOLDER SEED N_TENSORS
    python openai_checkpoint.py serve
The last does what lines on its standard input say, each a list in JSON: TensorFlow is imported once for
all of them. The first two made what lies in tests/convert/tensorflow, for tests without TensorFlow:
    make gpt2 SMALLEST truth sharded; mixed mixed 1 24
"""

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bundle_writer import write_bundle
from words import BYTES

from gpt2cli.tokenizer.bpe import gpt2

SMALLEST = {"n_vocab": 257, "n_ctx": 8, "n_embd": 4, "n_head": 2, "n_layer": 2}
TINY = {"n_vocab": 257, "n_ctx": 24, "n_embd": 32, "n_head": 4, "n_layer": 2}
GPT2_124M = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
TRUTH = "truth.npz"
COMMITTED = Path(__file__).parents[1] / "convert" / "tensorflow"


def write_texts(folder: Path, hparams: dict[str, int]) -> None:
    """The three of OpenAI's seven files that are text."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = gpt2() if hparams["n_vocab"] == gpt2().n_vocab else BYTES
    (folder / "hparams.json").write_text(json.dumps(hparams))
    (folder / "encoder.json").write_bytes(bpe.vocab_json)
    (folder / "vocab.bpe").write_bytes(bpe.merges_txt)


def make_checkpoint(folder: Path, hparams: dict[str, int] = TINY, *, truth: bool = True) -> Path:
    """All seven files, and with `truth` the weights once more as NumPy writes them."""
    write_texts(folder, hparams)
    _run("make", str(folder), json.dumps(hparams), *(["truth"] if truth else []))
    return folder


def imitate_checkpoint(folder: Path, hparams: dict[str, int] = TINY, n_shards: int = 1) -> Path:
    """What `make_checkpoint` makes, without TensorFlow; the graph is a mere name."""
    write_texts(folder, hparams)
    write_bundle(folder / "model.ckpt", dict(weights(hparams)), n_shards)
    (folder / "model.ckpt.meta").write_bytes(b"a graph, which is not read")
    (folder / "checkpoint").write_text('model_checkpoint_path: "/nowhere/model.ckpt"\n')
    return folder


@contextlib.contextmanager
def tensorflow_process() -> Iterator[Callable[..., Any]]:
    """Gives `ask(task, *arguments)`, which has a task done by one process and returns its result."""
    process = subprocess.Popen(
        [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    requests, answers = process.stdin, process.stdout

    def ask(task: str, *arguments: object) -> Any:
        print(json.dumps([task, *map(str, arguments)]), file=requests, flush=True)
        answer = answers.readline()
        assert answer, "its process has ended; stderr says why"
        return json.loads(answer)

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


def weights(hparams: dict[str, int], seed: int = 5) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs (OpenAI's name, array), one at a time, of a trained model's scale."""
    rng = np.random.default_rng(seed)
    C = hparams["n_embd"]

    def normal(*shape: int, mean: float = 0.0, std: float = 0.14) -> np.ndarray:
        array = rng.standard_normal(shape, dtype=np.float32)
        array *= np.float32(std)
        array += np.float32(mean)
        return array

    yield "model/wte", normal(hparams["n_vocab"], C)
    yield "model/wpe", normal(hparams["n_ctx"], C, std=0.1)
    for layer in range(hparams["n_layer"]):
        block = f"model/h{layer}"
        for norm in ("ln_1", "ln_2"):
            yield f"{block}/{norm}/g", normal(C, mean=0.5, std=0.2)
            yield f"{block}/{norm}/b", normal(C, std=0.1)
        for name, width_in, width_out in (
            ("attn/c_attn", C, 3 * C),
            ("attn/c_proj", C, C),
            ("mlp/c_fc", C, 4 * C),
            ("mlp/c_proj", 4 * C, C),
        ):
            yield f"{block}/{name}/w", normal(1, width_in, width_out)
            yield f"{block}/{name}/b", normal(width_out, std=0.1)
    yield "model/ln_f/g", normal(C, mean=1.5, std=0.3)
    yield "model/ln_f/b", normal(C, std=0.1)


def _run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _make(folder: str, shape: str, truth: str = "", sharded: str = "") -> None:
    import tensorflow.compat.v1 as tf

    hparams = json.loads(shape)
    n_devices = 2 if sharded else 1  # TensorFlow makes a data file for each
    config = tf.ConfigProto(device_count={"CPU": n_devices})
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        for n, (name, array) in enumerate(weights(hparams)):
            with tf.device(f"/cpu:{n % n_devices}"):
                value = tf.placeholder(tf.float32, array.shape)
                variable = tf.get_variable(name, array.shape, initializer=tf.zeros_initializer())
                session.run(tf.assign(variable, value), {value: array})
        tf.train.Saver(sharded=bool(sharded)).save(session, f"{folder}/model.ckpt")
    if truth:
        np.savez(f"{folder}/{TRUTH}", **dict(weights(hparams)))


def _mixed(folder: str, seed: str, n_tensors: str) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(int(seed))
    kinds = [
        (tf.float32, "u4"),
        (tf.float64, "u8"),
        (tf.float16, "u2"),
        (tf.bfloat16, "u2"),
        (tf.int64, "u8"),
    ]
    truth, parts = {}, {0: {}, 1: {}, 2: {}}
    for n in range(int(n_tensors)):
        kind, bits = kinds[n % len(kinds)]
        shape = tuple(rng.integers(0, 6, rng.integers(0, 5)))
        array = rng.integers(0, 1 << 8 * np.dtype(bits).itemsize, shape, bits)  # NaN and infinity too
        letters = rng.choice(list("ab/xyz_é"), rng.integers(1, 100))
        name = f"model/{''.join(letters)}{n}"
        truth[f"{kind.name} {name}"] = array
        parts[n % 3][name] = tf.constant(array.view(kind.as_numpy_dtype))
    for part, tensors in parts.items():
        tf.raw_ops.SaveV2(
            prefix=f"{folder}/part-{part}",
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
    prefixes = [f"{folder}/part-{part}" for part in parts]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=f"{folder}/mixed")
    np.savez_compressed(f"{folder}/{TRUTH}", **truth)


def _read(prefix: str, out: str) -> None:
    """{name: array} by TensorFlow's reader of checkpoints alone."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(prefix)
    np.savez(out, **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})


def _dump(folder: str, out: str) -> None:
    """{name: array} by `tf.train.load_checkpoint`, and by importing the graph and restoring it."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(folder)  # by the file called checkpoint
    arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = tf.compat.v1.train.import_meta_graph(f"{folder}/model.ckpt.meta")
        saver.restore(session, tf.train.latest_checkpoint(folder))
        for variable in tf.compat.v1.global_variables():
            assert np.array_equal(session.run(variable), arrays[variable.op.name])
    np.savez(out, **arrays)


def _convert(largest: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of `gpt2 convert`, while no file may be larger than so many bytes."""
    from gpt2cli.cli.app import run

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), hard))
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            return run(["convert", *arguments]), said.getvalue()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what TensorFlow prints is no answer
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        print(json.dumps(TASKS[task](*arguments)), file=answers, flush=True)


TASKS: dict[str, Callable[..., Any]] = {
    "make": _make,
    "mixed": _mixed,
    "read": _read,
    "dump": _dump,
    "convert": _convert,
    "serve": _serve,
}
if __name__ == "__main__":
    TASKS[sys.argv[1]](*sys.argv[2:])
