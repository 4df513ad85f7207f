"""Chat pairs from source files with ``ast``: signature → docstring, docstring → signature, "what does X do", bodies."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator

from reference.corpus import SourceFile

MAX_ANSWER_CHARS = 900
MIN_DOC_CHARS = 30

Function = ast.FunctionDef | ast.AsyncFunctionDef


def signature_of(node: Function) -> str:
    """The ``def`` line of a function, without decorators or body."""
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{prefix} {node.name}({ast.unparse(node.args)}){returns}:"


def _body_source(node: Function, lines: list[str]) -> str | None:
    """The function's own source, dedented, without its docstring; None if it is longer than an answer may be."""
    own = lines[node.lineno - 1 : node.end_lineno]
    if sum(map(len, own)) > 2 * MAX_ANSWER_CHARS:
        return None
    dedented = [line.removeprefix(" " * node.col_offset) for line in own]
    doc = node.body[0]
    start, end = doc.lineno - node.lineno, (doc.end_lineno or doc.lineno) - node.lineno
    return "\n".join(dedented[:start] + dedented[end + 1 :])


def first_sentence(doc: str) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(doc.strip().split("\n\n")[0].split())


def documented_functions(file: SourceFile) -> Iterator[tuple[str, Function, str]]:
    """Yields (qualified name, node, docstring) of every documented function in the file."""
    module = file.name.removesuffix(".py").removeprefix("stdlib/").removesuffix("/__init__").replace("/", ".")

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}.{child.name}")
            elif isinstance(child, Function):
                doc = ast.get_docstring(child)
                if doc and len(doc) >= MIN_DOC_CHARS and doc.isascii():
                    yield f"{prefix}.{child.name}", child, doc

    yield from walk(ast.parse(file.text), module)


def _pairs_of(name: str, node: Function, doc: str, lines: list[str]) -> list[tuple[str, str]]:
    """All (question, answer) pairs that one documented function gives."""
    signature = signature_of(node)
    body = _body_source(node, lines)
    summary = first_sentence(doc)
    pairs = [
        (f"What does `{name}` do?\n\n```python\n{signature}\n```", summary),
        (f"Write the docstring for this function.\n\n```python\n{signature}\n```", doc),
        (f"Which function of `{name.rpartition('.')[0]}` does this? {summary}", f"```python\n{signature}\n```"),
    ]
    if body:
        pairs.append((f"Explain this code.\n\n```python\n{body}\n```", doc))
        pairs.append(
            (f"Write a Python function.\n\n```python\n{signature}\n```\n\n{summary}", f"```python\n{body}\n```")
        )
    return pairs


def chat_pairs(files: list[SourceFile], pairs_per_function: int = 2) -> list[dict[str, str]]:
    """Makes chat records from the given files, at most ``pairs_per_function`` kinds per function, chosen by hash.

    Returns:
        records {"source": file name, "question": str, "answer": str} in a fixed order.
    """
    records = []
    for file in files:
        lines = file.text.splitlines()
        for name, node, doc in documented_functions(file):
            pairs = [p for p in _pairs_of(name, node, doc, lines) if len(p[1]) <= MAX_ANSWER_CHARS]
            pairs.sort(key=lambda pair: hashlib.sha256((name + pair[0]).encode()).digest())
            records += [{"source": file.name, "question": q, "answer": a} for q, a in pairs[:pairs_per_function]]
    return records
