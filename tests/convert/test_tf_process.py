"""The child process, with a stand-in for TensorFlow that misbehaves on script: no end of it is ours."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from openai_checkpoint import TINY, weights, write_texts

from gpt2cli.convert import tf_process
from gpt2cli.convert.openai_checkpoint import open_openai
from gpt2cli.convert.tf_process import reading, require_tensorflow, write
from gpt2cli.errors import Gpt2Error, InputError, ResourceError, UsageError

STAND_IN = """
import os, sys, time
from types import SimpleNamespace
import numpy as np

print("said on stdout")
print("said on stderr", file=sys.stderr)
{at_import}

class Reader:
    def __init__(self, prefix):
        assert prefix == "./model.ckpt", prefix
        {at_open}
        self.arrays = dict(np.load("arrays.npz"))
    def get_variable_to_dtype_map(self):
        return {{name: array.dtype for name, array in self.arrays.items()}}
    def get_variable_to_shape_map(self):
        return {{name: list(array.shape) for name, array in self.arrays.items()}}
    def get_tensor(self, name):
        print("reading", name)
        {at_read}
        return self.arrays[name]

compat = SimpleNamespace(v1=SimpleNamespace(train=SimpleNamespace(NewCheckpointReader=Reader)))
"""


class StandIn:
    """`stand_in(at_read="os.abort()")` is what the child imports in TensorFlow's place."""

    def __init__(self, place: Path, folder: Path) -> None:
        self.place, self.prefix = place, folder / "model.ckpt"

    def __call__(self, at_import: str = "", at_open: str = "", at_read: str = "") -> Path:
        self.place.mkdir(parents=True)
        lines = {"at_import": at_import, "at_open": at_open or "pass", "at_read": at_read or "pass"}
        (self.place / "__init__.py").write_text(STAND_IN.format(**lines))
        return self.prefix


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = tmp_path / "openai"
    write_texts(folder, TINY)
    keep(folder, dict(weights(TINY)))
    (folder / "model.ckpt.index").write_bytes(b"an index")
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(bytes(1 << 20))
    return StandIn(tmp_path / "modules" / "tensorflow", folder)


def keep(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(folder / "arrays.npz", **arrays)


def test_what_tensorflow_says_is_neither_shown_nor_taken_for_data(
    stand_in: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    prefix = stand_in(at_read="print('x' * 200_000, file=sys.stderr)")  # more than a pipe holds
    with reading(prefix) as checkpoint:
        assert checkpoint.entries["model/wte"] == ("float32", (257, 32))
        for name, array in weights(TINY):
            assert bytes(checkpoint.read(name, array.nbytes)) == array.tobytes()
    assert capfd.readouterr() == ("", "")


DIES = [
    ({"at_import": "raise ImportError('libcuda is broken')"}, UsageError, "ImportError: libcuda is broken"),
    ({"at_import": "os._exit(3)"}, UsageError, "said on stderr"),
    ({"at_open": "raise ValueError('first line\\nsecond line')"}, InputError, "ValueError: first line"),
    ({"at_open": "os._exit(1)"}, InputError, "said on stderr"),
    ({"at_read": "os.abort()"}, InputError, "died of Aborted"),
    ({"at_read": "os.kill(os.getpid(), 11)"}, InputError, "died of Segmentation fault"),
    ({"at_read": "os.kill(os.getpid(), 9)"}, ResourceError, "memory has run out"),
    ({"at_read": "return self.arrays[name][:1]"}, InputError, "128 of 32896 bytes came"),
]


@pytest.mark.parametrize(("script", "kind", "said"), DIES, ids=[str(row[0]) for row in DIES])
def test_however_the_child_ends_it_is_an_error_with_its_reason(
    script: dict[str, str], kind: type[Gpt2Error], said: str, stand_in: StandIn
) -> None:
    prefix = stand_in(**script)
    with pytest.raises(kind) as caught, open_openai(prefix.parent) as source:
        source.tensors["transformer.wte.weight"].load()
    assert said in caught.value.why and caught.value.fix


@pytest.mark.parametrize("moment", ["at_import", "at_open", "at_read"])
def test_a_child_that_hangs_is_given_up(
    moment: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = stand_in(**{moment: "time.sleep(600)"})
    if moment == "at_read":
        with reading(prefix) as checkpoint:
            monkeypatch.setattr(tf_process, "SILENCE", 0.1)
            with pytest.raises(InputError, match="does not answer"):
                checkpoint.read("model/wte", 4)
    else:
        monkeypatch.setattr(tf_process, "SILENCE", 1.0)
        with pytest.raises(InputError, match="does not answer"), reading(prefix):
            pass
    assert not psutil.Process().children()


def test_a_writer_that_hangs_or_dies_is_a_matter_of_resources(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = stand_in(at_import="import signal; signal.signal(15, lambda *a: os._exit(1))")
    with pytest.raises(ResourceError, match="cannot write the checkpoint"):  # it has no Graph
        write(prefix, {"a": [2]}, [memoryview(bytes(8))])
    stand_in.place.joinpath("__init__.py").write_text(
        "import time\n__getattr__ = lambda name: time.sleep(600)"
    )
    monkeypatch.setattr(tf_process, "SILENCE", 1.0)
    with pytest.raises(ResourceError, match="does not answer"):  # 8 MB do not fit into a pipe
        write(prefix, {"a": [2 << 20]}, [memoryview(bytes(8 << 20))])


def test_a_list_of_tensors_without_end_is_not_taken_in(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = stand_in()
    monkeypatch.setattr(tf_process, "_LARGEST_HEADER", 100)
    with pytest.raises(InputError, match=r"is no checkpoint of a GPT-2: .*bytes"), reading(prefix):
        pass


def test_tensors_that_are_no_gpt2s_are_named(stand_in: StandIn) -> None:
    prefix, arrays = stand_in(), dict(weights(TINY))

    def refused(changed: dict[str, np.ndarray]) -> str:
        keep(prefix.parent, changed)
        with pytest.raises(InputError) as caught, open_openai(prefix.parent):
            pass
        return str(caught.value)

    adam = {f"{name}/Adam": array for name, array in arrays.items()}
    said = refused(arrays | adam | {"global_step": np.zeros((), np.int64)})
    assert "unknown: model/wte/Adam [257, 32]" in said and "and 25 more" in said
    said = refused({name: array for name, array in arrays.items() if name != "model/h1/ln_2/g"})
    assert "missing: model/h1/ln_2/g [32]" in said
    said = refused(arrays | {"model/h0/mlp/c_fc/w": np.zeros((1, 128, 32), np.float32)})
    assert "model/h0/mlp/c_fc/w has shape [1, 128, 32]" in said and "[1, 32, 128] is needed" in said
    said = refused(arrays | {"model/wpe": np.zeros((25, 32), np.float32)})
    assert "model/wpe has shape [25, 32]" in said and "[24, 32]" in said
    said = refused({name: array for name, array in arrays.items() if "/h1/" not in name})
    assert "n_layer is 2" in said and "1 blocks" in said
    assert "model/wte is of type int32" in refused(arrays | {"model/wte": np.zeros((257, 32), np.int32)})


def test_other_precisions_are_kept(stand_in: StandIn) -> None:
    prefix = stand_in()
    halves = {name: array.astype(np.float16) for name, array in weights(TINY)}
    keep(prefix.parent, halves)
    with open_openai(prefix.parent) as source:
        for tensor in source.tensors.values():
            array = halves[tensor.source]
            assert np.array_equal(tensor.load().numpy(), array.reshape(tensor.shape))
            assert source.raw[tensor.source].dtype == np.float16


def test_without_tensorflow_there_are_two_ways_on(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = stand_in()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UsageError, match="not installed") as caught, open_openai(prefix.parent):
        pass
    assert "pip install 'gpt2cli[tensorflow]'" in caught.value.fix
    assert "gpt2 download 124M --source hf" in caught.value.fix


def test_a_folder_called_tensorflow_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorflow").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match="needs TensorFlow"):
        require_tensorflow()


PARENT = """
import sys
from pathlib import Path
from gpt2cli.convert.tf_process import reading
with reading(Path(sys.argv[1])) as checkpoint:
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_child_goes_with_its_parent(number: int, stand_in: StandIn) -> None:
    prefix = stand_in()
    path = os.pathsep.join(map(str, filter(None, sys.path)))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(prefix)],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C reaches both and not this test
    )
    assert parent.stdout and parent.stdout.readline() == b"open\n"
    children = psutil.Process(parent.pid).children()
    assert len(children) == 1
    os.killpg(parent.pid, number) if number == signal.SIGINT else parent.kill()
    parent.wait(30)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive and parent.returncode == -number
    assert parent.stderr and parent.stderr.read().count(b"Traceback") == (number == signal.SIGINT)  # its own


def test_the_child_imports_neither_torch_nor_numpy_before_tensorflow() -> None:
    code = "import sys, gpt2cli.convert.tf_process; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
