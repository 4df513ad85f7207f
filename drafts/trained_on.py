"""Which prompts a draft was trained on: hashes that lie beside its weights, so that nobody measures it on them unknowingly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drafts.prompts import Message, Prompt, prompts_hash, read_prompts, refuse_overlap
from stages.errors import InputError
from stages.folders import read_json, write_text
from stages.hashing import value_hash
from stages.progress import log

FILE = "trained_on.json"


@dataclass(frozen=True)
class TrainedOn:
    """Training material by hashes; neither texts nor names of files stand in it.

    Attributes:
        prompts: ids of the prompts (``Prompt.id``).
        sources: hashes of the names of the files that they were made from.
    """

    prompts: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()

    def __or__(self, other: TrainedOn) -> TrainedOn:
        return TrainedOn(self.prompts | other.prompts, self.sources | other.sources)

    def refuse(self, prompts: Iterable[tuple[str, str | None]], draft: str) -> None:
        """Raises InputError if one of the prompts (id, source), or a file that they were made from, is training material.

        Args:
            draft: name of the draft that was trained.
        """
        for number, source in prompts:
            if number in self.prompts:
                raise InputError(
                    f"prompt {number} ({source or 'of no file'}) is one that {draft} was trained on ({FILE}); measure it on others"
                )
            if source and _source_hash(source) in self.sources:
                raise InputError(
                    f"prompts from {source} share their source file with prompts that {draft} was trained on ({FILE}); measure it "
                    "on others"
                )


def _source_hash(source: str) -> str:
    return value_hash(source)[:16]


def trained_on(records: Iterable[dict[str, Any]]) -> TrainedOn:
    """What a draft is trained on with such data records."""
    found = [(record["id"], record.get("source")) for record in records]
    return TrainedOn(
        frozenset(prompt for prompt, _ in found), frozenset(_source_hash(source) for _, source in found if source)
    )


def identified(prompts: Sequence[Prompt]) -> list[tuple[str, str | None]]:
    """Ids and sources of them, and of the same texts asked by the other route: it is the text that a draft has learned."""
    return [
        (asked.id, prompt.source)
        for prompt in prompts
        for asked in (
            prompt,
            Prompt(prompt=prompt.text),
            Prompt(messages=(Message(role="user", content=prompt.text),)),
        )
    ]


def write_trained_on(folder: Path, material: TrainedOn) -> None:
    """Writes the list into a draft's folder."""
    lists = {name: sorted(hashes) for name, hashes in asdict(material).items()}
    write_text(folder / FILE, json.dumps(lists, indent=0) + "\n")


def read_trained_on(folder: Path) -> TrainedOn | None:
    """A draft's list; None where it has none, e.g. of a draft that was made elsewhere.

    Raises:
        InputError: the file is there and not readable.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    found = read_json(file, "copy the draft again, or remove the file and give --training-prompts")
    try:
        return TrainedOn(frozenset(found["prompts"]), frozenset(found["sources"]))
    except (KeyError, TypeError):
        raise InputError(
            f"{file}: has no lists 'prompts' and 'sources'; copy the draft again, or remove the file and give --training-prompts"
        ) from None


def refuse_known(prompts: Iterable[tuple[str, str | None]], draft: Path) -> None:
    """Refuses prompts (id, source) that a draft's own list has; without a list nothing is known."""
    found = read_trained_on(draft)
    if found is not None:
        found.refuse(prompts, str(draft))


def refuse_seen(prompts: list[Prompt], training_file: Path | None, drafts: Mapping[str, Path]) -> dict[str, Any]:
    """What is known of whether drafts have seen the prompts in training; refuses those that one has.

    Args:
        training_file: prompts that all of them may have been trained on.
        drafts: folders by the method's name.

    Returns:
        For the record: ``training_prompts``, the hash of that file's prompts (None without), and ``trained_on``, which drafts
        brought a list of their own.
    """
    lists = {name: found for name, folder in drafts.items() if (found := read_trained_on(folder)) is not None}
    for name, found in lists.items():
        found.refuse(identified(prompts), name)
    training = None if training_file is None else read_prompts(training_file)
    if training is not None:
        refuse_overlap(training, prompts)
    elif unknown := sorted(drafts.keys() - lists.keys()):
        log(
            f"whether these prompts were seen in training is not checked for {', '.join(unknown)}: no list of its own, and no "
            "--training-prompts given"
        )
    return {
        "training_prompts": None if training is None else prompts_hash(training),
        "trained_on": {name: name in lists for name in drafts},
    }
