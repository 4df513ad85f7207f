from pathlib import Path
from typing import Self

import pytest
from pydantic import Field, model_validator

from stages.errors import InputError
from stages.settings import MixedPrecision, Settings, read_yaml, validate


class Inner(Settings):
    keep: int = Field(default=2, ge=1)


class Outer(Settings):
    name: str
    prune: Inner = Inner()


def test_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(InputError, match=r"unknown key 'prune\.kep': did you mean 'keep'\?"):
        validate(Outer, {"name": "a", "prune": {"kep": 3}}, "recipe.yaml")


def test_bad_value_is_named_with_its_range() -> None:
    with pytest.raises(InputError, match=r"'prune\.keep'.*greater than or equal to 1, given 0"):
        validate(Outer, {"name": "a", "prune": {"keep": 0}}, "recipe.yaml")


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_no_setting_is_a_number_that_is_none_or_has_no_end(number: float) -> None:
    class Times(Settings):
        wait_s: float = 1.0

    with pytest.raises(InputError, match="'wait_s': Input should be a finite number"):
        validate(Times, {"wait_s": number}, "here")


def test_a_message_shows_no_mapping_and_nothing_that_may_be_a_key() -> None:
    class Engine(Settings):
        api_key: int = 0

        @model_validator(mode="after")
        def _refuse(self) -> Self:
            raise ValueError("is refused")

    class Fleet(Settings):
        engines: tuple[Engine, ...]

    for values in ({"engines": [{"api_key": 4711}]}, {"engines": [{"api_key": "sk-4711"}]}):
        with pytest.raises(InputError) as caught:
            validate(Fleet, values, "here")
        assert "4711" not in str(caught.value)


def test_an_unknown_key_is_said_before_the_missing_one_that_it_may_be() -> None:
    with pytest.raises(InputError, match=r"unknown key 'nam': did you mean 'name'\?"):
        validate(Outer, {"nam": "a"}, "recipe.yaml")


def test_missing_key_is_named() -> None:
    with pytest.raises(InputError, match="'name': Field required"):
        validate(Outer, {}, "recipe.yaml")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: a\nprune: [1\n")
    with pytest.raises(InputError, match=r"not valid YAML at line \d"):
        read_yaml(file, Outer)


def test_resolved_settings_load_back_equal(tmp_path: Path) -> None:
    first = validate(Outer, {"name": "a", "prune": {"keep": 5}}, "here")
    assert validate(Outer, first.model_dump(mode="json"), "there") == first


def test_a_no_without_quotes_is_the_word_and_not_a_falsehood(tmp_path: Path) -> None:
    class Training(Settings):
        mixed_precision: MixedPrecision = "auto"

    (tmp_path / "a.yaml").write_text("mixed_precision: no\n")
    assert read_yaml(tmp_path / "a.yaml", Training).mixed_precision == "no"
    with pytest.raises(InputError, match="should be 'auto', 'bf16' or 'no', given True"):
        validate(Training, {"mixed_precision": True}, "recipe.yaml")
