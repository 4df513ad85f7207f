"""Makes the evaluation tasks' data: ``python -m reference.make_tasks`` writes reference/tasks/*.jsonl, which the YAML there reads.

All items come from held-out standard-library files that no training leg has seen (checked by hash); a line or docstring that
stands in a training file too is left out, as standard-library modules copy from each other. Wrong choices are from the same file
where it has enough, and are of similar length.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from reference.chat_pairs import chat_pairs, documented_functions, first_sentence, signature_of
from reference.corpus import SourceFile, check_disjoint, collect
from stages.folders import write_text
from stages.hashing import text_hash

FOLDER = Path(__file__).parent / "tasks"
TRAINED_ON = Path(__file__).parent / "target" / "files.json"

NUM_CHOICES = 4
EXTRACT_CHARS = 1600
CONTEXT_CHARS = 500
MIN_CONTEXT_LINES = 6
LINE_CHARS = range(3, 13)
"""Short enough that a model of ten million parameters is right about some of them; of lines of 12 to 72 characters none in 150."""
ANSWER_CHARS = range(20, 161)
SIGNATURE_CHARS = range(12, 121)

STATEMENTS = ("return", "raise", "pass", "break", "continue")
"""How a line of code may begin that no bracket, colon or assignment gives away."""

Item = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Something that is asked, its right answer, and where it comes from.

    Attributes:
        kind: wrong answers are right answers to questions of the same kind.
    """

    file: SourceFile
    question: str
    answer: str
    kind: str = ""


def heldout_files(files: Sequence[SourceFile], trained_on: dict[str, dict[str, str]]) -> list[SourceFile]:
    """The held-out files whose text stands, by hash, in no file that the target was trained on."""
    seen = {file["sha256"] for file in trained_on.values() if file["split"] == "train"}
    seen |= {file.sha256 for file in files if file.split == "train"}
    return [file for file in files if file.split == "heldout" and file.sha256 not in seen]


def extract(file: SourceFile) -> Item:
    """Whole lines of a file, about 1,600 characters from a seeded place on, for perplexity."""
    lines = file.text.splitlines(keepends=True)
    total = len(file.text)
    start = random.Random(f"extract-{file.name}").randint(0, max(0, total - EXTRACT_CHARS))
    text, place = "", 0
    for line in lines:
        if place >= start and len(text) + len(line) <= EXTRACT_CHARS:
            text += line
        elif place >= start:
            break
        place += len(line)
    return {"source": file.name, "sha256": file.sha256, "text": text}


def line_window(lines: Sequence[str], place: int) -> str:
    """Hash of a line with the two that say something before it: what makes a line the same in two files."""
    before = [line.strip() for line in lines[max(0, place - 8) : place] if line.strip()]
    return text_hash("\n".join([*before[-2:], lines[place].strip()]))


def line_windows(file: SourceFile) -> Iterator[str]:
    """The windows of all lines that could be asked for."""
    lines = file.text.splitlines()
    for place, line in enumerate(lines):
        if len(line.strip()) in LINE_CHARS:
            yield line_window(lines, place)


def next_lines(file: SourceFile, seen: set[str]) -> list[Pair]:
    """Lines of code after the lines before them; without comments, text in quotes, and windows ``seen`` in training.

    An answer begins with the line break before it and has none behind it, whose token depends on how the next line is indented.
    """
    lines, found = file.text.splitlines(), []
    for place, line in enumerate(lines):
        asked = line.strip()
        if place < MIN_CONTEXT_LINES or len(asked) not in LINE_CHARS or asked[0] in "#\"'" or not asked.isascii():
            continue
        if not asked.endswith((")", ":", "]", "}")) and "=" not in asked and not asked.startswith(STATEMENTS):
            continue  # prose of a docstring
        if line_window(lines, place) in seen:
            continue
        context, first = "", place - 1
        while first >= 0 and len(context) + len(lines[first]) < CONTEXT_CHARS:
            context = lines[first] + "\n" + context
            first -= 1
        if context.isascii():
            found.append(Pair(file, context.rstrip("\n"), "\n" + line))
    return found


def docstrings(file: SourceFile, seen: set[str]) -> list[Pair]:
    """Signatures with the first sentence of their docstrings, but those ``seen`` in training."""
    found: dict[str, Pair] = {}
    for _, node, doc in documented_functions(file):
        signature, summary = signature_of(node), first_sentence(doc)
        fits = len(summary) in ANSWER_CHARS and len(signature) in SIGNATURE_CHARS
        if fits and text_hash(summary) not in seen and signature.isascii():
            found.setdefault(summary, Pair(file, signature, summary))
    return list(found.values())


def summaries(file: SourceFile) -> Iterator[str]:
    """Hashes of all docstrings' first sentences."""
    for _, _, doc in documented_functions(file):
        yield text_hash(first_sentence(doc))


def questions(file: SourceFile, seen: set[str]) -> list[Pair]:
    """Chat questions that one sentence answers, but sentences ``seen`` in training; the kind is how the question begins."""
    return [
        Pair(file, pair["question"], pair["answer"], kind=" ".join(pair["question"].split()[:2]))
        for pair in chat_pairs([file], pairs_per_function=5)
        if len(pair["answer"]) in ANSWER_CHARS
        and not pair["answer"].startswith("```")
        and text_hash(first_sentence(pair["answer"])) not in seen
        and len(pair["question"]) <= 2 * CONTEXT_CHARS
    ]


def wrong_answers(pair: Pair, others: Sequence[Pair], rng: random.Random) -> list[str]:
    """Three other answers: of the same kind, from the same file first, among those the ones most like it in length."""
    distinct = {
        o.answer: o for o in others if o.kind == pair.kind and o.answer != pair.answer and o.question != pair.question
    }
    candidates = list(distinct.values())
    rng.shuffle(candidates)
    candidates.sort(key=lambda o: (o.file.name != pair.file.name, abs(len(o.answer) - len(pair.answer))))
    return [o.answer for o in candidates[: NUM_CHOICES - 1]]


def multiple_choice(pair: Pair, others: Sequence[Pair]) -> Item:
    """An item with its choices in a seeded order."""
    rng = random.Random(text_hash(pair.question + pair.answer))
    choices = [pair.answer, *wrong_answers(pair, others, rng)]
    rng.shuffle(choices)
    return {
        "source": pair.file.name, "sha256": pair.file.sha256,
        "question": pair.question, "choices": choices, "answer": choices.index(pair.answer),
    }  # fmt: skip


def swapped(pair: Pair) -> Pair:
    """The answer asked, the question answered."""
    return Pair(pair.file, pair.answer, pair.question, pair.kind)


def drawn(pairs: Sequence[Pair], count: int, seed: str) -> list[Pair]:
    """A seeded choice that takes from every file in turn, so that no file has more than its share."""
    rng = random.Random(seed)
    of_file: dict[str, list[Pair]] = {}
    for pair in rng.sample(list(pairs), len(pairs)):
        of_file.setdefault(pair.file.name, []).append(pair)
    turns = max(map(len, of_file.values()), default=0)
    in_turn = [rows[turn] for turn in range(turns) for rows in of_file.values() if turn < len(rows)]
    return in_turn[:count]


def make(files: list[SourceFile], trained_on: dict[str, dict[str, str]], count: int) -> dict[str, list[Item]]:
    """All tasks' items, at most ``count`` each."""
    heldout = heldout_files(files, trained_on)
    training = [file for file in files if file.split == "train"]
    lines = {window for file in training for window in line_windows(file)}
    sentences = {sentence for file in training for sentence in summaries(file)}

    def gather(of: Callable[[SourceFile, set[str]], list[Pair]], seen: set[str]) -> list[Pair]:
        return [pair for file in heldout for pair in of(file, seen)]

    code, documented, asked = gather(next_lines, lines), gather(docstrings, sentences), gather(questions, sentences)
    signed = [swapped(pair) for pair in documented]
    return {
        "perplexity": [extract(file) for file in heldout],
        "next_line": [
            {"source": p.file.name, "sha256": p.file.sha256, "context": p.question, "line": p.answer}
            for p in drawn(code, count, "next_line")
        ],
        "docstring": [multiple_choice(p, documented) for p in drawn(documented, count, "docstring")],
        "signature": [multiple_choice(p, signed) for p in drawn(signed, count, "signature")],
        "chat": [multiple_choice(p, asked) for p in drawn(asked, count, "chat")],
    }  # fmt: skip


def main(count: int = typer.Option(300, help="items of each task at most")) -> None:
    """Write the tasks' data."""
    files = collect()
    check_disjoint(files)
    for name, items in make(files, json.loads(TRAINED_ON.read_text(encoding="utf-8")), count).items():
        write_text(FOLDER / f"{name}.jsonl", "".join(json.dumps(item) + "\n" for item in items))
        print(f"{FOLDER.name}/{name}.jsonl: {len(items)} items of {len({item['source'] for item in items})} files")


if __name__ == "__main__":
    typer.run(main)
