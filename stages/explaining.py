"""What can be set, told from the settings classes themselves: each field with its default and what its docstring says of it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

WIDTH = 110
ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")


def explanations(cls: type[BaseModel]) -> dict[str, str]:
    """What stands of a class's fields in its source, and in its parents': an ``Attributes`` section, or a string under a field."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if one is not BaseModel and issubclass(one, BaseModel):
            found |= _in_section(inspect.cleandoc(one.__doc__ or ""))
            found |= _under_fields(one)
    return found | {name: field.description for name, field in cls.model_fields.items() if field.description}


def _in_section(docstring: str) -> dict[str, str]:
    """Entries of the section ``Attributes``, continued lines joined."""
    found: dict[str, str] = {}
    _, _, section = docstring.partition("Attributes:\n")
    names: list[str] = []
    for line in section.split("\n"):
        if match := ENTRY.match(line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            break
    return found


def _under_fields(cls: type[BaseModel]) -> dict[str, str]:
    """Strings that stand right under a field."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):  # no source there, or none that can be read
        return {}
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def listing(cls: type[BaseModel]) -> Iterator[str]:
    """Lines ``name = default``, each with its explanation below, and settings within settings indented."""
    told = explanations(cls)
    for name, field in cls.model_fields.items():
        default: Any = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
        yield f"{name}:" if isinstance(default, BaseModel) else f"{name} = {default}"
        text = told.get(name, "").replace("``", "")
        yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
        if isinstance(default, BaseModel):
            yield from (f"    {line}" for line in listing(type(default)))
