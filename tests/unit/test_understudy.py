from pathlib import Path

import pytest
from typer.testing import CliRunner

from drafts.verifying import VerifySettings
from pruning.plan import DepthPlan, load_plan
from pruning.settings import PruneSettings
from server.settings import GatewaySettings
from server.tenants import hash_key, parse_tenants
from stages.errors import InputError
from tests.unit.pruning import pico
from understudy import app, settings_from


def yaml(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_options_that_are_not_given_leave_the_file_alone(tmp_path: Path) -> None:
    file = yaml(tmp_path, "host: 0.0.0.0\nport: 9000\n")
    assert settings_from(GatewaySettings, file, [], host=None, port=None).port == 9000
    assert settings_from(GatewaySettings, file, [], host="::", port=1).host == "::"
    assert settings_from(GatewaySettings, file, ["port=2"], port=1).port == 2


def test_file_and_pairs_are_judged_together(tmp_path: Path) -> None:
    settings = settings_from(PruneSettings, yaml(tmp_path, "method: first\n"), ["remove=3"])
    assert (settings.method, settings.remove, settings.keep) == ("first", 3, None)
    with pytest.raises(InputError, match="did you mean 'method'"):
        settings_from(PruneSettings, yaml(tmp_path, "metod: first\n"), [])


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    settings = settings_from(VerifySettings, yaml(tmp_path, "num_samples: 512\n"), [], prompts=Path("data #1.jsonl"))
    assert settings.prompts == Path("data #1.jsonl")


def test_a_pair_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match="must be key=value"):
        settings_from(PruneSettings, None, ["keep"])


def test_a_key_is_shown_once_with_the_entry_that_holds_its_hash() -> None:
    done = CliRunner().invoke(app, ["key", "shop"])
    tenants = parse_tenants(f"tenants:\n{done.stdout}", "printed").tenants
    assert tenants[0].name == "shop"
    assert tenants[0].keys == (hash_key(done.stderr.split()[0]),)
    assert isinstance(CliRunner().invoke(app, ["key", "no name"]).exception, InputError)


def test_keys_are_added_to_a_file_which_stays_as_it_is_where_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    made = [CliRunner().invoke(app, ["key", name, "--to", str(file)]) for name in ("shop", "desk")]
    tenants = parse_tenants(file.read_text(), "written").tenants
    assert [(tenant.name, tenant.keys[0]) for tenant in tenants] == [
        (name, hash_key(done.stderr.split()[0])) for name, done in zip(("shop", "desk"), made, strict=True)
    ]
    before = file.read_text()
    again = CliRunner().invoke(app, ["key", "shop", "--to", str(file)]).exception
    assert isinstance(again, InputError)
    assert "two tenants are named 'shop'" in str(again)
    assert file.read_text() == before


@pytest.mark.parametrize(("written", "kept"), [("method: evenly_spaced\n", "evenly_spaced"), ("", "first_and_last")])
def test_depth_leaves_the_way_of_removing_layers_to_the_file(written: str, kept: str, tmp_path: Path) -> None:
    target = pico.save(pico.LLAMA.model(), tmp_path / "target")
    file = yaml(tmp_path, f"{written}keep: 2\n")
    arguments = ["prune", str(target), "--out", str(tmp_path / "out"), "--method", "depth", "--config", str(file)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    plan = load_plan(tmp_path / "out")
    assert isinstance(plan, DepthPlan)
    assert plan.method == kept
