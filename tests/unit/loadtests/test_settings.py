from pathlib import Path

import pytest

from loadtests.settings import LoadSettings, Shape
from stages.errors import InputError
from stages.settings import read_yaml, validate

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objectiv": {}}, "did you mean 'objective'"),
        ({"lengths": [{"max_token": 3}]}, "did you mean 'max_tokens'"),
        ({"tenants": [{"name": "a", "wieght": 2}]}, "did you mean 'weight'"),
        ({"shape": {"kind": "ramp"}}, "needs 'to'"),
        ({"shape": {"kind": "step", "level": 4, "to": 2}}, "at least 4"),
        ({"shape": {"kind": "burst", "to": 2, "every_s": 2, "burst_s": 2}}, "less than every_s"),
        ({"shape": {"kind": "burst", "to": 2, "every_s": 5, "burst_s": 0.5}}, "changes once a second.* given 0.5"),
        ({"shape": {"kind": "burst", "to": 2, "every_s": 2, "burst_s": 1.5}}, "at least 1, given 0.5"),
        ({"shape": {"kind": "wave"}}, "'steady', 'ramp', 'burst' or 'step'"),
        ({"users": [0]}, "at least 1"),
        ({"kinds": {"chat": 0}}, "above 0"),
        ({"stream": 2}, "less than or equal to 1"),
        ({"tenants": [{"name": "a"}, {"name": "a"}]}, "same name"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(values: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        validate(LoadSettings, values, "file")
    assert "\n" not in str(caught.value)


def test_an_open_loop_may_burst_for_less_than_a_second() -> None:
    burst = Shape(kind="burst", to=2, every_s=1, burst_s=0.25)
    assert LoadSettings(loop="open", shape=burst).shape == burst


def test_keys_come_from_the_environment_or_a_file_and_are_not_saved(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    tenants = [{"name": "a", "key_env": "KEY_A"}, {"name": "b", "key_file": str(tmp_path / "key")}, {"name": "c"}]
    settings = validate(LoadSettings, {"tenants": tenants}, "test")
    assert settings.keys({"KEY_A": "from-env"}) == {"a": "from-env", "b": "from-file"}
    assert "from-" not in settings.model_dump_json()
    with pytest.raises(InputError, match="KEY_A is not set"):
        settings.keys({})


def test_the_resolved_copy_loads_back_equal() -> None:
    settings = read_yaml(ROOT / "recipes" / "loadtest.yaml", LoadSettings).resolved()
    assert LoadSettings.model_validate_json(settings.model_dump_json()) == settings
    assert settings.prompts.is_absolute()
