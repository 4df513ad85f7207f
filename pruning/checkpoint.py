"""Reading a target and writing what came of it; the one place where weights meet the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from pruning.families import cut_config, family_of
from pruning.surgery import build, fill, pruned_config
from stages.errors import InputError
from stages.folders import publish, read_json, write_text
from stages.processor import multiplies_bfloat16

TOKENIZER_PATTERNS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tekken.json",
    "chat_template*", "additional_chat_templates",
)  # fmt: skip
"""Files that belong to the tokenizer, copied byte by byte."""
GENERATION = "generation_config.json"
COPIED_PATTERNS = (*TOKENIZER_PATTERNS, GENERATION, "LICENSE*", "NOTICE*")
"""With how the target is meant to be sampled, and the terms its weights came under."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
"""What transformers and safetensors raise for files that are damaged or do not fit together."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' own progress bars and load reports off the terminal."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_config(folder: Path) -> PreTrainedConfig:
    """Reads a target's config.

    Raises:
        InputError: no such folder, no config.json, an unknown architecture, or values that do not fit together.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a Hugging Face checkpoint")
    values = read_json(folder / "config.json", "give the folder of a Hugging Face checkpoint")
    if not isinstance(values, dict):
        raise InputError(f"{folder / 'config.json'}: must be a JSON object")
    family_of(values, str(folder))
    try:
        with _quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # strict configs raise several kinds of their own
        raise InputError(f"{folder / 'config.json'}: not a usable config: {_line(error)}") from error


def load_tokenizer(folder: Path) -> Any:
    """Reads a target's tokenizer; InputError when it is missing or unreadable."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizer classes raise whatever their parsers raise
        raise InputError(f"{folder}: the tokenizer cannot be read ({_line(error)}); copy its files there") from error


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's safetensors files, by its index where it has one.

    Raises:
        InputError: none there, or one of the index's files missing.
    """
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX, "copy the checkpoint again").get("weight_map", {}).values()))
    else:
        names = [SINGLE]
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name} there; copy the checkpoint again, with safetensors weights")
    return [folder / name for name in names]


def _placement(device: str, gpus: Sequence[int] | None) -> dict[str, Any]:
    """How from_pretrained places a model: over the GPUs when there are several and ``auto`` is asked for."""
    count = torch.cuda.device_count() if gpus is None else len(gpus)
    if device != "auto" or count < 2:
        return {}
    return {"device_map": "auto"} | (
        {} if gpus is None else {"max_memory": {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in gpus}}
    )


def _device(name: str) -> str:
    """The device behind ``auto``: a GPU where there is one."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    folder: Path, dtype: str = "auto", device: str = "cpu", gpus: Sequence[int] | None = None
) -> PreTrainedModel:
    """Loads a target for inference.

    Args:
        folder: a Hugging Face checkpoint of a known family.
        dtype: ``auto`` for the stored type, or float64, float32, bfloat16, float16.
        device: ``auto`` for GPUs where there are some, else a name torch knows.
        gpus: those that ``auto`` may spread the model over; all where not given.

    Raises:
        InputError: as ``load_config``, and for weights that are unreadable or incomplete.
    """
    config = load_config(folder)
    weight_files(folder)
    try:
        with _quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                **_placement(device, gpus),
            )
    except BROKEN as error:
        raise InputError(f"{folder}: the weights cannot be read ({_line(error)}); copy the checkpoint again") from error
    if found["missing_keys"]:  # transformers would leave them random
        raise InputError(f"{folder}: weight {min(found['missing_keys'])} is missing; copy the checkpoint again")
    try:
        placed: PreTrainedModel = model if hasattr(model, "hf_device_map") else model.to(_device(device))
    except (RuntimeError, AssertionError) as error:  # a name that torch does not know, a GPU that is not there, or full
        raise InputError(
            f"device {device!r}: {_line(error)}; give auto, cpu, or a GPU that is there, e.g. cuda:0"
        ) from error
    return placed.eval()


def quickly_computed(model: PreTrainedModel) -> PreTrainedModel:
    """The model in a type that its device is quick at: float32 on a processor without products of bfloat16."""
    slow = model.device.type == "cpu" and model.dtype in (torch.bfloat16, torch.float16) and not multiplies_bfloat16()
    return model.float() if slow else model


def load_target(
    folder: Path, dtype: str = "auto", device: str = "cpu", gpus: Sequence[int] | None = None
) -> tuple[PreTrainedModel, Any]:
    """Loads a target and its tokenizer; as ``load_model`` and ``load_tokenizer``."""
    return load_model(folder, dtype, device, gpus), load_tokenizer(folder)


def _kept_tensors(folder: Path, kept_layers: Sequence[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Reads only the weights that stay, under their new names, one at a time."""
    family = family_of(load_config(folder))
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                if (new_name := family.rename(name, kept_layers)) is not None:
                    yield new_name, file.get_tensor(name)


def stored_dtype(folder: Path) -> torch.dtype:
    """The type that config.json names, or else that of the first weight."""
    if (named := load_config(folder).dtype) is not None:
        return named
    with safe_open(weight_files(folder)[0], framework="pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype


def load_layers(folder: Path, kept_layers: Sequence[int]) -> PreTrainedModel:
    """The pruned model, read from the target's files without loading the rest: a 70B fits where its draft fits.

    Args:
        folder: the target.
        kept_layers: ascending indices of layers that exist.

    Raises:
        InputError: as ``load_model``.
    """
    config = load_config(folder)
    try:
        pruned = build(pruned_config(config, kept_layers), stored_dtype(folder))
        with torch.no_grad():
            fill(pruned, _kept_tensors(folder, kept_layers))
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except BROKEN as error:
        raise InputError(f"{folder}: the weights cannot be read ({_line(error)}); copy the checkpoint again") from error
    return pruned


def copy_companions(source: Path, folder: Path) -> None:
    """Copies what belongs to a checkpoint besides config and weights (tokenizer, template, licence), byte by byte."""
    for path in sorted({path for pattern in COPIED_PATTERNS for path in source.glob(pattern)}):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)


def cut_config_of(folder: Path, kept_layers: Sequence[int]) -> dict[str, Any]:
    """A target's config.json as it was written, cut to ``kept_layers``.

    Better than what transformers writes after reading it (renamed keys, another architecture for a Mistral with
    layer_types): whatever serves the target reads the draft the same way.
    """
    return cut_config(read_json(folder / "config.json", "copy the checkpoint again"), kept_layers)


def write_checkpoint(model: PreTrainedModel, source: Path, folder: Path, config: dict[str, Any] | None = None) -> None:
    """Writes a model into an existing folder.

    Args:
        model: its weights keep their type.
        source: the checkpoint whose tokenizer files are copied byte by byte.
        folder: where it is written; ``publish`` makes it whole or leaves it out.
        config: the content of config.json; None for what transformers makes of the model's.
    """
    sampling = model.generation_config
    model.generation_config = GenerationConfig()  # some that load are refused on saving
    try:
        with _quiet():
            model.save_pretrained(folder)
    finally:
        model.generation_config = sampling
    (folder / GENERATION).unlink(missing_ok=True)  # the source's own is copied, if it has one
    if config is not None:
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    for weights in folder.glob(
        "*.safetensors"
    ):  # written for their owner alone; an engine in a container is somebody else
        weights.chmod((folder / "config.json").stat().st_mode)
    copy_companions(source, folder)


def save_checkpoint(model: PreTrainedModel, source: Path, folder: Path, config: dict[str, Any] | None = None) -> None:
    """Writes a whole checkpoint folder by rename.

    Args:
        model: the model; its weights keep their type.
        source: the checkpoint whose tokenizer files are copied byte by byte.
        folder: where it shall stand.
        config: the content of config.json; None for what transformers makes of the model's.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with publish(folder) as partial:
        write_checkpoint(model, source, partial, config)
