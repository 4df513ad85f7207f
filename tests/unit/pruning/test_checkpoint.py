"""Reading targets, refusing broken ones in one line, writing folders whole."""

import errno
import json
from pathlib import Path

import pytest
import torch

from pruning import checkpoint
from pruning.surgery import prune_depth
from stages.errors import InputError, StorageError
from stages.folders import MARK, partial_of

from . import pico


def refused(call, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def both(folder: Path, said: str) -> None:
    """Loading the whole target, and only some of its layers, refuse alike."""
    refused(lambda: checkpoint.load_target(folder), said)
    refused(lambda: checkpoint.load_layers(folder, (0, 4)), said)


def test_a_target_loads_with_its_tokenizer(target):
    model, tokenizer = checkpoint.load_target(target)
    assert model.dtype == torch.float32
    assert not model.training
    assert tokenizer("abc")["input_ids"] == pico.tokenizer()("abc")["input_ids"]
    assert checkpoint.load_model(target, dtype="bfloat16").dtype == torch.bfloat16


def test_no_folder_no_config_no_weights(tmp_path, target):
    both(tmp_path / "nowhere", "nowhere: no such folder")
    (tmp_path / "empty").mkdir()
    both(tmp_path / "empty", r"config.json: no such file; give the folder of a Hugging Face checkpoint")
    (target / "model.safetensors").unlink()
    both(target, "no model.safetensors there")


def test_a_config_that_cannot_be_used(target):
    (target / "config.json").write_text("{,")
    both(target, "config.json: not valid JSON at line 1")
    (target / "config.json").write_text("[]")
    both(target, "must be a JSON object")


def test_a_config_whose_values_do_not_fit(target):
    pico.edit_config(target, hidden_size="wide")
    both(target, "config.json: not a usable config")


def test_an_unknown_architecture_is_named(target):
    pico.edit_config(target, architectures=["MambaForCausalLM"])
    both(target, "unknown architecture MambaForCausalLM; known are LlamaForCausalLM")


def test_truncated_weights(target):
    file = target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    both(target, "the weights cannot be read .*; copy the checkpoint again")


def test_weights_that_are_no_safetensors(target):
    (target / "model.safetensors").write_bytes(b"<html>404</html>" * 20)
    both(target, "the weights cannot be read")


def test_missing_weights_are_not_made_up(target):
    pico.edit_config(target, num_hidden_layers=pico.LAYERS + 1)
    refused(lambda: checkpoint.load_target(target), r"weight model.layers.5\S+ is missing")
    refused(lambda: checkpoint.load_layers(target, (0, 5)), r"weight model.layers.1\S+ is missing")


def test_weights_of_another_shape(target):
    pico.edit_config(target, intermediate_size=64)
    both(target, str(target))


def test_a_missing_shard_is_named(target):
    model = checkpoint.load_model(target)
    model.save_pretrained(target, max_shard_size="40KB")
    (target / "model.safetensors").unlink(missing_ok=True)
    assert len(checkpoint.weight_files(target)) > 2
    torch.testing.assert_close(checkpoint.load_layers(target, (1,)).state_dict(), prune_depth(model, (1,)).state_dict())
    gone = checkpoint.weight_files(target)[1]
    gone.unlink()
    both(target, f"no {gone.name} there")


def test_weights_beside_the_checkpoint_are_left_alone(target):
    """Some publishers add the same weights once more under names of their own."""
    (target / "consolidated.safetensors").write_bytes(b"something else")
    assert checkpoint.weight_files(target) == [target / "model.safetensors"]


def test_a_broken_tokenizer_is_named(target):
    (target / "tokenizer.json").write_text("{}")
    refused(lambda: checkpoint.load_target(target), "the tokenizer cannot be read")


def test_bf16_without_a_type_in_the_config_stays_bf16(tmp_path):
    folder = pico.save(pico.LLAMA.model().bfloat16(), tmp_path / "target")
    pico.edit_config(folder, dtype=None)
    assert checkpoint.load_layers(folder, (0,)).dtype == torch.bfloat16


def test_companions_are_copied_byte_by_byte(tmp_path, target):
    (target / "LICENSE").write_text("terms")
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates" / "tool.jinja").write_text("x")
    checkpoint.save_checkpoint(checkpoint.load_layers(target, (0, 4)), target, tmp_path / "out")
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE"]
    for name in [*names, "additional_chat_templates/tool.jinja"]:
        assert (tmp_path / "out" / name).read_bytes() == (target / name).read_bytes(), name
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["num_hidden_layers"], values["architectures"]) == (2, ["LlamaForCausalLM"])


def test_whoever_may_read_the_config_may_read_the_weights(tmp_path, target):
    model, _ = checkpoint.load_target(target)
    checkpoint.save_checkpoint(model, target, tmp_path / "saved")
    saved = [(tmp_path / "saved" / name).stat().st_mode for name in ("config.json", "model.safetensors")]
    assert saved[0] == saved[1]


def test_a_full_disk_leaves_the_old_folder(tmp_path, target, monkeypatch):
    out = tmp_path / "out"
    model = checkpoint.load_layers(target, (0,))
    checkpoint.save_checkpoint(model, target, out)
    (out / MARK).write_text('{"stage": "prune"}')
    before = (out / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StorageError, match="the disk is full"):
        checkpoint.save_checkpoint(model, target, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert not partial_of(out).exists()


def test_sampling_that_transformers_would_not_save_costs_nothing(tmp_path, target):
    """A temperature without do_sample loads with a warning and is refused on saving."""
    sampling = {"temperature": 0.9, "top_p": 0.6}
    (target / "generation_config.json").write_text(json.dumps(sampling))
    model, _ = checkpoint.load_target(target)
    checkpoint.save_checkpoint(model, target, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text()) == sampling
    assert model.generation_config.temperature == 0.9
    (target / "generation_config.json").unlink()
    checkpoint.save_checkpoint(model, target, tmp_path / "without")
    assert not (tmp_path / "without" / "generation_config.json").exists()


@pytest.mark.parametrize("device", ["cuda:9", "gpu", "cuda"])
def test_a_device_that_is_not_there_is_refused(target, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    refused(lambda: checkpoint.load_model(target, device=device), f"device '{device}': .*; give auto, cpu")
