from pathlib import Path

import pytest

from stages.processor import multiplies_bfloat16
from stages.provenance import Run, can_resume, read


def test_run_json_tells_whether_a_folder_is_current(tmp_path: Path) -> None:
    run = Run("prune", {"keep": 2, "layers": (0, 1)}, {"target": "abc"}, seed=3)
    assert not run.is_current(tmp_path)
    run.write(tmp_path, figures={"a": 1})
    assert run.is_current(tmp_path)
    assert not Run("prune", {"keep": 3, "layers": (0, 1)}, {"target": "abc"}, seed=3).is_current(tmp_path)
    assert not Run("prune", {"keep": 2, "layers": (0, 1)}, {"target": "abd"}, seed=3).is_current(tmp_path)


def test_run_json_names_versions_hardware_and_cost(tmp_path: Path) -> None:
    Run("prune", {}, {}).write(tmp_path)
    record = read(tmp_path)
    assert record is not None
    assert {"date", "wall_s", "peak_memory_mib", "versions", "hardware", "git_revision"} <= set(record)
    assert record["hardware"]["bfloat16"] is multiplies_bfloat16()


def test_a_damaged_run_json_is_not_current(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert not Run("prune", {}, {}).is_current(tmp_path)


def test_an_interrupted_run_of_other_settings_is_begun_anew_and_what_changed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run("recover", {"tokens": 5, "rate": 0.1}, {"target": "abc"})
    assert not can_resume(run, tmp_path)
    run.write(tmp_path)
    assert can_resume(run, tmp_path)
    assert capsys.readouterr().err == ""
    assert not can_resume(Run("recover", {"tokens": 6, "rate": 0.1}, {"target": "abc"}), tmp_path)
    assert (
        "setting 'tokens' changed since the interrupted run: it was 5, now 6; starting over" in capsys.readouterr().err
    )
    assert not can_resume(Run("recover", {"tokens": 5, "rate": 0.1}, {"target": "abd"}), tmp_path)
    assert "input 'target' changed since the interrupted run: it was abc, now abd" in capsys.readouterr().err


def test_settings_that_change_nothing_that_comes_out_neither_begin_anew_nor_do_again(tmp_path: Path) -> None:
    def run(**settings: int) -> Run:
        return Run("recover", settings, {"target": "abc"}, harmless=("checkpoint_every_s",))

    run(tokens=5, checkpoint_every_s=60).write(tmp_path)
    assert run(tokens=5, checkpoint_every_s=30).is_current(tmp_path)
    assert can_resume(run(tokens=5, checkpoint_every_s=30), tmp_path)
    assert not run(tokens=6, checkpoint_every_s=60).is_current(tmp_path)
    assert not can_resume(run(tokens=6, checkpoint_every_s=30), tmp_path)
