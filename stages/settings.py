"""Strict, frozen settings, and YAML files read into them with the nearest known key named."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from stages.errors import InputError


class Settings(BaseModel):
    """Base of every settings object: frozen, unknown keys refused, and numbers that are none or without end."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


MixedPrecision = Annotated[
    Literal["auto", "bf16", "no"], BeforeValidator(lambda value: "no" if value is False else value)
]
"""In what matrices are multiplied while training; YAML reads a ``no`` without quotes as false."""

SettingsType = TypeVar("SettingsType", bound=BaseModel)


def _known_keys(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the settings object at ``location`` knows (location without its last, unknown, part)."""
    parts = list(location)
    while parts:
        field = cls.model_fields.get(str(parts.pop(0)))
        inner: Any = None if field is None else field.annotation
        if get_origin(inner) in (dict, tuple) and parts:  # settings by name or in a row: the next part is which
            inner = get_args(inner)[1 if get_origin(inner) is dict else 0]
            parts.pop(0)
        elif get_origin(inner) in (list, tuple) and parts:  # a list of settings: the next part is the place in it
            inner = get_args(inner)[0]
            parts.pop(0)
        if not isinstance(inner, type) or not issubclass(inner, BaseModel):
            return []
        cls = inner
    return list(cls.model_fields)


def describe(error: ValidationError, cls: type[BaseModel]) -> str:
    """One line for the first thing pydantic found wrong; an unknown key first, which is often what a missing one is called."""
    found = error.errors()
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    location = first["loc"]
    name = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(cls, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{name}': {hint}"
    return f"'{name}': {first['msg']}{_given(first)}" if name else str(first["msg"])


def _given(found: Any) -> str:
    """What was given, where one can see it at a glance: no mappings or lists, and nothing that may be a key."""
    value, secret = found["input"], any("key" in str(part) for part in found["loc"])
    shown = found["type"] != "missing" and not secret and isinstance(value, (str, int, float, bool))
    return f", given {value!r}" if shown else ""


def validate(cls: type[SettingsType], values: Any, source: str) -> SettingsType:
    """Builds settings from plain values.

    Raises:
        InputError: with ``source`` and the offending key and value in one line.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {describe(error, cls)}") from error


def read_yaml(path: Path, cls: type[SettingsType]) -> SettingsType:
    """Reads a YAML file into settings; InputError names the file, the line or the key."""
    return validate(cls, read_mapping(path), str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a YAML file that must hold keys and values; InputError names the file or the line."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give the path of a recipe, e.g. recipes/reference.yaml") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}: not valid YAML{where}: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of keys to values, found {type(values).__name__}")
    return values
