"""Python sources on this machine, split by file into train, validation and held-out, each file named by its hash.

The text is what every Python installation carries: the standard library (without tests and generated tables) and,
for training only, the pure-Python sources of some pinned dependencies. Held-out prompts come from the standard
library alone, so that the only text the repository quotes is under the PSF licence.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STDLIB_LEFT_OUT = frozenset(
    {"test", "tests", "encodings", "idle_test", "pydoc_data", "site-packages", "__pycache__", "turtledemo", "ensurepip"}
)
GENERATED_FILES = frozenset(
    {"html/entities.py", "stringprep.py", "sre_constants.py", "lib2to3/pgen2/token.py", "keyword.py", "token.py",
     "tkinter/constants.py", "_sitebuiltins.py", "this.py", "nturl2path.py", "msilib/schema.py", "msilib/sequence.py",
     "__phello__.foo.py", "symbol.py", "mimetypes.py"}
)  # fmt: skip
"""Tables and poems: text that repeats itself teaches a small model to loop."""

DEPENDENCIES = (
    "anyio", "attr", "click", "h11", "httpcore", "httpx", "jinja2", "jsonschema", "lark", "packaging", "requests",
    "starlette", "tqdm", "typer", "urllib3", "uvicorn", "yaml", "yarl", "docstring_parser",
)  # fmt: skip
"""Import names (or sub-folders) of pinned dependencies whose sources join the training split."""

MAX_FILE_BYTES = 400_000
MIN_FILE_BYTES = 400


@dataclass(frozen=True)
class SourceFile:
    """One Python file of the corpus.

    Attributes:
        name: where it comes from, e.g. ``stdlib/json/decoder.py``.
        split: ``train``, ``validation`` or ``heldout``.
        sha256: hex digest of the text as UTF-8.
        text: the file's text.
    """

    name: str
    split: str
    sha256: str
    text: str


def split_of(name: str) -> str:
    """Assigns a file to a split by the hash of its *name*, so that the same library always splits the same way.

    One stdlib file in twenty is validation, one in ten is held out; dependency files are always training text.
    """
    if not name.startswith("stdlib/"):
        return "train"
    bucket = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 20
    return {0: "validation", 1: "heldout", 2: "heldout"}.get(bucket, "train")


def is_table(text: str) -> bool:
    """True for text whose lines mostly repeat a shape (generated tables), judged by digits-and-names-folded lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 40:
        return False
    shapes = {"".join("0" if c.isdigit() else "a" if c.isalpha() else c for c in line)[:12] for line in lines}
    return len(shapes) < 0.2 * len(lines)


def _read(path: Path, name: str, seen: set[str]) -> SourceFile | None:
    """Reads one file; None if it is unreadable, too small, too large, generated, a table, or seen before."""
    if not MIN_FILE_BYTES <= path.stat().st_size <= MAX_FILE_BYTES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return None
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest in seen or is_table(text):
        return None
    seen.add(digest)
    return SourceFile(name=name, split=split_of(name), sha256=digest, text=text)


def _python_files(root: Path, left_out: frozenset[str]) -> list[Path]:
    """All ``.py`` files below ``root`` in name order, without the folders named in ``left_out``."""
    found = root.rglob("*.py")
    return sorted(p for p in found if not left_out.intersection(p.relative_to(root).parts[:-1]))


def collect(stdlib: Path | None = None, site_packages: Path | None = None) -> list[SourceFile]:
    """Gathers the whole corpus in a fixed order.

    Args:
        stdlib: folder of the standard library; the running interpreter's when None.
        site_packages: folder the dependencies are installed in; the running interpreter's when None.
    """
    stdlib = stdlib or Path(sysconfig.get_paths()["stdlib"])
    site_packages = site_packages or Path(sysconfig.get_paths()["purelib"])
    seen: set[str] = set()
    files: list[SourceFile] = []
    for path in _python_files(stdlib, STDLIB_LEFT_OUT):
        relative = path.relative_to(stdlib).as_posix()
        if relative in GENERATED_FILES or path.name.startswith("_sysconfigdata"):
            continue
        found = _read(path, f"stdlib/{relative}", seen)
        files += [found] if found else []
    return files + of_packages(DEPENDENCIES, site_packages, seen)


def of_packages(
    packages: Sequence[str], site_packages: Path | None = None, seen: set[str] | None = None
) -> list[SourceFile]:
    """Gathers the sources of installed packages, without their tests, in a fixed order.

    Args:
        packages: import names.
        site_packages: the folder that they are installed in; the running interpreter's when None.
        seen: hashes of texts that are left out; those that are found are added.
    """
    site_packages = site_packages or Path(sysconfig.get_paths()["purelib"])
    seen = set() if seen is None else seen
    left_out = STDLIB_LEFT_OUT | {"_vendor", "vendor", "testing"}
    files: list[SourceFile] = []
    for package in packages:
        for path in _python_files(site_packages / package, left_out):
            found = _read(path, path.relative_to(site_packages).as_posix(), seen)
            files += [found] if found else []
    return files


def check_disjoint(files: list[SourceFile]) -> None:
    """Raises ValueError if one text (by hash) stands in two splits."""
    owner: dict[str, SourceFile] = {}
    for file in files:
        other = owner.setdefault(file.sha256, file)
        if other.split != file.split:
            raise ValueError(f"{file.name} ({file.split}) has the same text as {other.name} ({other.split})")
