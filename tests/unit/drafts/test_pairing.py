"""What ``choose`` writes is what the gateway reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drafts.choice import Choice, ChooseSettings
from drafts.choosing import choose
from drafts.measurements import Measurements
from drafts.pairing import read_measurements, serving_record, speculative_config
from server.pair import Pair, read_pair
from tests.unit.drafts.test_choosing import MIDDLING, SATURATED, USELESS, costs, in_one_pass, measurements
from tests.unit.drafts.test_suffix import beside
from tests.unit.server.test_pair import checkpoint

SCHEDULED = measurements(MIDDLING, *costs(4), *SATURATED)


def written(folder: Path, found: Measurements, choice: Choice) -> Pair:
    """The pair as it is read back."""
    for name in ("target", "draft"):
        checkpoint(folder / name, name.encode())
    place = folder / "pair"
    place.mkdir()
    record = serving_record(folder / "target", folder / "draft", choice, place, "m", 64, found)
    (place / "serving.json").write_text(json.dumps(record))
    return read_pair(place)


def test_a_pair_that_decodes_by_suffixes_needs_no_draft(tmp_path: Path) -> None:
    found = beside(MIDDLING, 3.0, 3.0, 3.0, 3.0)
    pair = written(tmp_path, found, choose(found, ChooseSettings()))
    assert pair.speculative_config == {"method": "suffix", "num_speculative_tokens": 8}
    assert (pair.draft, pair.serving.draft, pair.draft_name) == (None, None, "suffix")
    assert pair.serving.expected is not None
    assert pair.serving.expected.speedup == pytest.approx(3.0)
    assert len(pair.serving.expected.predictions) == 4


def test_a_pair_with_a_draft_names_it_and_one_without_speculation_does_not(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    some = written(tmp_path / "some", SCHEDULED, choose(SCHEDULED, ChooseSettings()))
    assert some.draft_name == "draft"
    assert some.speculative_config is not None
    assert some.speculative_config["model"] == str(some.draft)
    none = measurements(USELESS)
    assert written(tmp_path, none, choose(none, ChooseSettings())).speculative_config is None


@pytest.mark.parametrize(
    ("found", "options"),
    [
        (SCHEDULED, {"draft_sample_method", "num_speculative_tokens_per_batch_size"}),
        (in_one_pass((1, 0.010, 0.0101)), {"draft_sample_method", "parallel_drafting"}),
        (beside(MIDDLING, 3.0, 3.0, 3.0, 3.0), set()),
    ],
)
def test_the_engine_is_told_what_goes_with_its_method(found: Measurements, options: set[str]) -> None:
    config: dict[str, Any] = speculative_config(choose(found, ChooseSettings())) or {}
    assert config.keys() == {"method", "num_speculative_tokens", *options}


def test_measurements_are_read_as_they_were_written_also_by_an_earlier_version(tmp_path: Path) -> None:
    found = beside(MIDDLING, 1.1, 1.0, 1.2, 0.9)
    for stated, expected in (
        (found.model_dump(mode="json"), found),
        (found.model_dump(mode="json", exclude={"served"}), found.model_copy(update={"served": ()})),
    ):
        (tmp_path / "measurements.json").write_text(json.dumps(stated))
        assert read_measurements(tmp_path) == expected
