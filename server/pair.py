"""A pair as `choose` wrote it down: ``serving.json``, read strictly and checked against the folders it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from server.engine_command import EngineSettings
from stages.errors import InputError
from stages.folders import read_json
from stages.hashing import checkpoint_hash, tokenizer_hash
from stages.settings import Settings, validate

FILE = "serving.json"
DRAFT_FILE = "understudy.json"


class Checkpoint(Settings):
    """A checkpoint folder and what must be in it."""

    path: Path
    """Absolute, or relative to the folder of serving.json."""
    sha256: str
    tokenizer_sha256: str


class Prediction(Settings):
    """Speed-up that was expected of one kind of traffic, with the chosen setting, when the pair was chosen."""

    kind: str
    temperature: float
    concurrency: int = Field(ge=1)
    speedup: float = Field(gt=0)


class Expected(Settings):
    """What the chosen setting should give, so that the gateway can say when reality drifts from it.

    Attributes:
        speedup: at the lowest measured concurrency, as are the two others.
        acceptance_rate: None where suffix decoding never proposed anything, as is the length.
        predictions: for every kind, temperature and measured concurrency; of suffix decoding what was served.
    """

    acceptance_rate: float | None = Field(default=None, ge=0, le=1)
    mean_acceptance_length: float | None = Field(default=None, ge=1)
    speedup: float | None = Field(default=None, gt=0)
    predictions: tuple[Prediction, ...] = ()


class ServingFile(Settings):
    """``serving.json``, version 1."""

    schema_version: Literal[1]
    served_model_name: str = Field(min_length=1)
    target: Checkpoint
    draft: Checkpoint | None = None
    speculative_config: dict[str, Any] | None = None
    max_model_len: int = Field(ge=1)
    enforce_eager: bool | None = None
    """Whether the engine runs without compiling; None leaves it to the engine's settings."""
    engine_args: tuple[str, ...] = ()
    """Further arguments of the engine's command line."""
    expected: Expected | None = None
    reason: str = ""


class Pair(Settings):
    """A checked pair, with absolute paths."""

    file: Path
    serving: ServingFile
    target: Path
    draft: Path | None

    @property
    def draft_name(self) -> str | None:
        """What the metrics call the draft: its folder's name, or the method that works without a draft model."""
        return draft_name_of(self.file, self.serving)

    @property
    def speculative_config(self) -> dict[str, Any] | None:
        """The engine's ``--speculative-config``, the draft's folder filled in."""
        config = self.serving.speculative_config
        if config is None or self.draft is None:
            return config
        return {**config, "model": str(self.draft)}


def _read_object(path: Path, what: str) -> dict[str, Any]:
    value = read_json(path, f"give {what}")
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a JSON object, found {type(value).__name__}")
    return value


def check_speculation(config: dict[str, Any], source: str) -> None:
    """Checks the part of a speculative_config that every method shares.

    Raises:
        InputError: no method, or fewer than one draft token per step.
    """
    if not isinstance(config.get("method"), str):
        raise InputError(f'{source}: speculative_config needs a \'method\', e.g. "draft_model" or "ngram"')
    tokens = config.get("num_speculative_tokens")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise InputError(
            f"{source}: num_speculative_tokens must be a whole number of at least 1, given {tokens!r}; "
            "to serve without a draft set speculative_config to null"
        )


def _check_method(serving: ServingFile, source: str) -> None:
    config = serving.speculative_config
    if config is None:
        if serving.draft is not None:
            raise InputError(f"{source}: there is a draft but no speculative_config; give both or neither")
        return
    check_speculation(config, source)
    if config["method"] == "draft_model" and serving.draft is None:
        raise InputError(f"{source}: method 'draft_model' needs a draft, and there is none")


def _check_folder(role: str, wanted: Checkpoint, folder: Path, source: str) -> None:
    """Content and tokenizer of a checkpoint must be what serving.json says."""
    if not folder.is_dir():
        raise InputError(f"{source}: the {role}'s folder {folder} does not exist")
    for what, found, expected in (
        ("tokenizer", tokenizer_hash(folder), wanted.tokenizer_sha256),
        ("content", checkpoint_hash(folder), wanted.sha256),
    ):
        if found != expected:
            raise InputError(
                f"{source}: the {role} in {folder} is not the one this pair was made with: its {what} hash is "
                f"{found[:12]}…, expected {expected[:12]}…; choose the pair again or put the right checkpoint there"
            )


def _check_together(target: Path, draft: Path, serving: ServingFile, source: str) -> None:
    """Target and draft must read the same tokens, and the draft must be this target's."""
    assert serving.draft is not None
    if serving.target.tokenizer_sha256 != serving.draft.tokenizer_sha256:
        raise InputError(f"{source}: target and draft have different tokenizers; a draft must share its target's")
    sizes = [_read_object(folder / "config.json", "a checkpoint").get("vocab_size") for folder in (target, draft)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{source}: the target's vocabulary has {sizes[0]} tokens, the draft's {sizes[1]}; they must be equal"
        )
    record = draft / DRAFT_FILE
    if record.is_file():
        made_for = _read_object(record, "a draft's record").get("target_sha256")
        if made_for != serving.target.sha256:
            raise InputError(
                f"{source}: the draft was made for another target (hash {str(made_for)[:12]}…, "
                f"this one is {serving.target.sha256[:12]}…)"
            )


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def draft_name_of(path: Path, serving: ServingFile) -> str | None:
    """What a pair's draft is called: its folder's name, or the method that works without a draft model; None: no draft.

    Args:
        path: of the pair's serving.json or its folder.
        serving: what stands in it.
    """
    config = serving.speculative_config
    if config is None:
        return None
    if serving.draft is None:
        return str(config["method"])
    return (_file(path).parent / serving.draft.path).resolve().name


def read_serving(path: Path) -> ServingFile:
    """Reads a pair's serving.json alone: its folders may lie on another machine.

    Raises:
        InputError: names what is wrong in it.
    """
    file = _file(path)
    values = _read_object(file, "the folder of a pair (it holds serving.json), made by `understudy choose`")
    serving = validate(ServingFile, values, str(file))
    _check_method(serving, str(file))
    return serving


def read_pair(path: Path, target: Path | None = None) -> Pair:
    """Reads a pair and checks that what it names is there and belongs together.

    Args:
        path: the folder that holds serving.json, or the file itself.
        target: where the target lies, if not where serving.json says; its content must be the same.

    Raises:
        InputError: names the part that does not fit.
    """
    file, serving = _file(path), read_serving(path)
    source = str(file)
    target = (target or file.parent / serving.target.path).resolve()
    draft = None if serving.draft is None else (file.parent / serving.draft.path).resolve()
    _check_folder("target", serving.target, target, source)
    if draft is not None and serving.draft is not None:
        _check_together(target, draft, serving, source) if draft.is_dir() else None
        _check_folder("draft", serving.draft, draft, source)
    return Pair(file=file, serving=serving, target=target, draft=draft)


def read_served(path: Path, name: str | None = None, max_model_len: int | None = None) -> Pair:
    """What ``serve`` is given: a pair, or a checkpoint of its own (a pruned model, a target), served without a draft.

    Args:
        path: as for ``read_pair``, or a folder with config.json and no serving.json.
        name: what clients call a checkpoint; None: its folder's name.
        max_model_len: longest prompt plus answer of a checkpoint in tokens; None: as long as its config allows.

    Raises:
        InputError: as ``read_pair``; no checkpoint; a length for a pair, or none that the config allows.
    """
    if not path.is_dir() or (path / FILE).exists() or not (path / "config.json").is_file():
        if max_model_len is not None:
            raise InputError(
                f"{path}: is a pair, whose serving.json says how long prompts may be: leave --max-model-len out"
            )
        return read_pair(path)
    folder = path.resolve()
    longest = max_model_len or _read_object(folder / "config.json", "a checkpoint").get("max_position_embeddings")
    if not isinstance(longest, int):
        raise InputError(f"{path}: its config.json has no max_position_embeddings; give --max-model-len")
    target = Checkpoint(path=folder, sha256=checkpoint_hash(folder), tokenizer_sha256=tokenizer_hash(folder))
    serving = ServingFile(
        schema_version=1, served_model_name=name or folder.name, target=target, max_model_len=longest,
        reason="a checkpoint without a draft",
    )  # fmt: skip
    return Pair(file=folder / "config.json", serving=serving, target=folder, draft=None)


def engine_settings(pair: Pair, log_file: Path, **more: object) -> EngineSettings:
    """The settings of a pair's engine.

    Args:
        pair: a checked pair.
        log_file: where the engine's output goes.
        more: further fields of EngineSettings.
    """
    serving = pair.serving
    fields = {
        "model": pair.target, "served_model_name": serving.served_model_name, "max_model_len": serving.max_model_len,
        "speculative_config": pair.speculative_config, "enforce_eager": serving.enforce_eager,
        "extra_args": serving.engine_args,
        "log_file": log_file, **more,
    }  # fmt: skip
    return EngineSettings.model_validate(fields)
