"""What can be asked for, and how it is refused."""

import subprocess
import sys

import pytest

from pruning.settings import CalibrationSettings, PruneSettings, ScoreSettings
from stages.errors import InputError
from stages.settings import validate


def test_the_default_keeps_two_layers_first_and_last():
    settings = PruneSettings()
    assert (settings.method, settings.keep, settings.kept_count(24)) == ("first_and_last", 2, 2)


def test_layers_alone_mean_explicit():
    settings = PruneSettings(layers=(0, 5, 11))
    assert (settings.method, settings.kept_count(24)) == ("explicit", 3)


def test_remove_counts_from_the_target():
    assert PruneSettings(remove=22).kept_count(24) == 2


@pytest.mark.parametrize(
    "settings",
    [
        PruneSettings(), PruneSettings(keep=5, method="angular", calibration=("a.txt",)), PruneSettings(remove=3),
        PruneSettings(layers=(0, 5, 11)), ScoreSettings(scores=("angular",)), CalibrationSettings(seed=4),
    ],
)  # fmt: skip
def test_the_resolved_copy_loads_back_equal(settings):
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"keep": 2, "remove": 3}, "one of keep, remove and layers, not keep and remove"),
        ({"keep": 2, "layers": [0, 1]}, "not keep and layers"),
        ({"method": "explicit"}, "belong together"),
        ({"method": "angular", "layers": [0]}, "belong together"),
        ({"method": "angula"}, "'method': .*angular.*given 'angula'"),
        ({"keeep": 2}, "unknown key 'keeep': did you mean 'keep'"),
        ({"calibration_tokens": 0}, "'calibration_tokens': .*greater than or equal to 1, given 0"),
    ],
)
def test_contradictions_are_refused_in_one_line(values, said):
    with pytest.raises(InputError, match=said) as error:
        validate(PruneSettings, values, "recipe.yaml")
    assert "\n" not in str(error.value)


def test_reading_settings_loads_no_torch():
    """The command parses recipes and prints its help without waiting for torch."""
    light = "import sys, pruning.settings, pruning.selection, pruning.plan, pruning.families, pruning.sizes"
    code = f"{light}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
