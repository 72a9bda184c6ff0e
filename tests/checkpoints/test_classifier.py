"""A classifier's folder: written and read again, refused where it is not one, or not whole."""

import json
from pathlib import Path

import pytest
import torch
from adapters import Lora, save_adapter, save_base
from lessons import lesson
from loud import loud

from gpt2cli.checkpoints.classifier import LoadedClassifier, load_classifier, write_classifier
from gpt2cli.checkpoints.folder import load_model, read_config, write_manifest
from gpt2cli.checkpoints.safetensors_file import read_tensors, write_tensors
from gpt2cli.errors import InputError
from gpt2cli.paths import shown_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _, task = lesson(tmp_path)
    model = loud(task.fresh_model("formula"))
    path = tmp_path / "classifier"
    path.mkdir()
    write_manifest(path, write_classifier(path, model, task.data.labels, task.tokenizer, 20, "task: x\n"))
    torch.save(model.state_dict(), tmp_path / "reference.pt")
    return path


def change(path: Path, **values: object) -> None:
    """Change a folder's config.json, as somebody else would have written it: without a manifest."""
    content = json.loads((path / "config.json").read_text()) | values
    (path / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    (path / "manifest.json").unlink(missing_ok=True)


def test_what_was_written_is_read(folder: Path) -> None:
    loaded: LoadedClassifier = load_classifier(folder, dropout=0.3)
    reference = torch.load(folder.parent / "reference.pt", weights_only=True)
    assert loaded.labels == ("bank", "ham", "spam") and loaded.max_tokens == 20
    assert loaded.model.config.dropout == 0.3
    state = loaded.model.state_dict()
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[name], reference[name]) for name in state)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "bank", "1": "ham", "2": "spam"}
    assert (
        config["label2id"] == {"bank": 0, "ham": 1, "spam": 2}
        and config["pad_token_id"] == config["eos_token_id"]
    )


def test_a_language_model_is_refused_with_the_right_command(folder: Path) -> None:
    letters = folder.parent / "letters"
    with pytest.raises(InputError, match="holds a GPT2LMHeadModel, not a classifier") as caught:
        load_classifier(letters)
    assert f"gpt2 finetune-classify spam init={shown_path(letters)}" == caught.value.fix


def test_a_classifier_is_refused_as_a_generator_with_the_right_command(folder: Path) -> None:
    for refuse in (read_config, load_model):
        with pytest.raises(InputError, match="not a language model") as caught:
            refuse(folder)
        assert f"gpt2 classify {folder}" in caught.value.fix


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_flipped_byte_is_noticed(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-4] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        load_classifier(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"problem_type": "regression"}, "problem_type is 'regression'"),
        ({"problem_type": {"a": 1}}, "problem_type is"),
        ({"architectures": {"a": 1}}, "holds a {'a': 1}, not a classifier"),
        ({"architectures": 5}, "holds a 5, not a classifier"),
        ({"architectures": [["x"]]}, "holds a ['x'], not a classifier"),
        ({"architectures": ["BertModel"]}, "holds a BertModel, not a classifier"),
        ({"id2label": {"0": "a"}}, "id2label is"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label is"),
        ({"id2label": {"0": "a", "1": 3}}, "id2label is"),
        ({"id2label": ["a", "b"]}, "id2label is"),
        ({"id2label": {"0": "a", "1": "b"}}, "score.weight has shape"),
        ({"n_layer": 2}, "the tensors are not those of a GPT-2"),
    ],
)
def test_folders_of_others_that_do_not_fit(folder: Path, values: dict[str, object], said: str) -> None:
    change(folder, **values)
    with pytest.raises(InputError) as caught:
        load_classifier(folder)
    assert said in str(caught.value)


def test_labels_that_hugging_face_leaves_out_and_a_length_without_end(folder: Path) -> None:
    change(folder, id2label=None, problem_type=None)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": int(1e30)}))
    loaded = load_classifier(folder)
    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and loaded.max_tokens == 24


@pytest.mark.parametrize("limit", [True, False, -1, 0, 2.5, "20", None])
def test_a_length_that_is_none_is_the_context(folder: Path, limit: object) -> None:
    (folder / "manifest.json").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": limit}))
    assert load_classifier(folder).max_tokens == 24


@pytest.mark.parametrize("shape", [(), (3,), (3, 16, 1), (1 << 50, 0)])
def test_a_score_that_is_no_matrix_of_the_model(folder: Path, shape: tuple[int, ...]) -> None:
    """Without names of labels its rows are counted, and there must not be a name for each of 2**50."""
    change(folder, id2label=None)
    weights = folder / "model.safetensors"
    write_tensors(weights, read_tensors(weights) | {"score.weight": torch.zeros(shape)}, {})
    with pytest.raises(InputError, match=r"model.safetensors: .*score.weight"):
        load_classifier(folder)


def test_an_adapter_is_refused_with_its_commands(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    save_adapter(path, save_base(tmp_path / "base"), Lora())
    with pytest.raises(InputError, match="is an adapter of a language model, not a classifier") as caught:
        load_classifier(path)
    assert f"gpt2 generate --model {path}" in caught.value.fix
    assert f"gpt2 convert {path} --merge" in caught.value.fix


def test_a_key_that_stands_twice_is_refused(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text('{"architectures": [], "architectures": []}')
    with pytest.raises(InputError, match=r"config.json: is not JSON: .*occurs twice"):
        load_classifier(folder)


def test_broken_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json:1: is not JSON"):
        load_classifier(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json: is not a JSON object"):
        load_classifier(folder)
