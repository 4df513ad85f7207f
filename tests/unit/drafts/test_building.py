import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from drafts import methods
from drafts.building import check_recipe, read_recipe
from drafts.estimating import batch_bytes, estimate, scoring_flops
from pruning.settings import PruneSettings
from pruning.sizes import Sizes
from stages.errors import InputError
from tests.unit.pruning import pico
from understudy import main

ROOT = Path(__file__).parents[3]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe for a pico target beside it."""
    pico.save(pico.LLAMA.model(), tmp_path / "target")
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": f"{name} prompt", "source": f"{name}.py"}) + "\n")
    file = tmp_path / "recipe.yaml"
    prompts = "prompts: {train: train.jsonl, validation: validation.jsonl}"
    file.write_text(f"name: pico\ntarget: target\n{prompts}\nout: {tmp_path}/out\nmax_model_len: 64\n")
    return file


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, which has imported what takes a new one ten seconds; exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["understudy", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_paths_are_relative_to_the_recipe_and_lengths_are_handed_down(recipe: Path) -> None:
    read = read_recipe(recipe)
    assert read.target == recipe.parent / "target"
    assert read.prune.calibration == (recipe.parent / "train.jsonl",)
    assert (read.distill.max_model_len, read.measure.max_model_len, read.recover.max_length) == (64, 64, 64)
    check_recipe(read)
    recipe.write_text(recipe.read_text() + "distill: {answerer: earlier}\nrecover: {start: earlier}\n")
    assert read_recipe(recipe).distill.answerer == read_recipe(recipe).recover.start == recipe.parent / "earlier"


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("prune: {keep: 9}", "9"),
        ("prune: {method: fist}", "prune.method"),
        ("recover: {learning_rat: 1}", "did you mean 'learning_rate'"),
        ("measure: {repeats: 0}", "measure.repeats"),
        ("choose: {max_tokens: 0}", "choose.max_tokens"),
    ],
)
def test_bad_settings_are_one_clear_line(recipe: Path, addition: str, message: str) -> None:
    recipe.write_text(recipe.read_text() + addition + "\n")
    with pytest.raises(InputError, match=message) as error:
        check_recipe(read_recipe(recipe))
    assert "\n" not in str(error.value)


def test_prompts_that_overlap_are_refused_before_any_work(recipe: Path) -> None:
    (recipe.parent / "validation.jsonl").write_text('{"prompt": "train prompt"}\n')
    with pytest.raises(InputError, match="also a training prompt"):
        check_recipe(read_recipe(recipe))


def test_a_package_that_is_missing_is_told_of_before_any_work(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "suffix_installed", lambda: False)
    check_recipe(read_recipe(recipe))
    recipe.write_text(recipe.read_text() + "measure: {suffix: true}\n")
    with pytest.raises(InputError, match="arctic-inference, is not installed"):
        check_recipe(read_recipe(recipe))


def test_the_estimate_counts_real_parameters(recipe: Path) -> None:
    target, draft, lines = estimate(read_recipe(recipe), 1e11)
    assert target.total == sum(p.numel() for p in pico.LLAMA.model().parameters())
    assert draft.num_layers == 2
    assert [line.stage for line in lines] == ["prune", "distill", "recover", "measure", "choose"]


def test_scoring_takes_a_pass_or_as_many_as_the_greedy_removal_tries() -> None:
    target = Sizes(num_layers=4, embeddings=7, layers=40, final_norm=0, lm_head=6, lm_head_work=6)

    def flops(scored: bool = True, **settings: object) -> float:
        return scoring_flops(PruneSettings.model_validate({"keep": 2, **settings}), target, 2, scored)

    assert flops(scored=False) == 0
    assert flops(scored=False, mlp_width=3, calibration_tokens=100) == 2 * 46 * 100
    assert flops(method="block_influence", calibration_tokens=100) == 2 * 46 * 100
    of_four, of_three = 40 + 4 * (20 + 6), 30 + 3 * (15 + 6)
    assert flops(method="greedy_kl", calibration_tokens=100, greedy_tokens=10) == 2 * (of_four + of_three) * 10


def test_a_batch_of_a_large_vocabulary_weighs_more_than_its_layers() -> None:
    """8,192 positions of Llama-3.1-8B: four times 128,256 logits of two bytes each, two layers of 34 bytes a unit."""
    config = SimpleNamespace(vocab_size=128256, hidden_size=4096)
    assert batch_bytes(config, 2, 8192) == 8192 * (4 * 128256 * 2 + 34 * 4096 * 2)


def test_the_command_prints_one_line_and_ends_with_two_on_bad_input(tmp_path: Path, run: Run) -> None:
    code, _, said = run("build", str(tmp_path / "missing.yaml"))
    assert (code, said.count("\n")) == (2, 1)
    assert "no such file" in said
    code, _, said = run("prune", str(tmp_path / "missing"), "--out", str(tmp_path / "out"))
    assert code == 2
    assert str(tmp_path / "missing") in said


def test_a_dry_run_writes_nothing(recipe: Path, run: Run) -> None:
    code, printed, said = run("build", str(recipe), "--dry-run")
    assert code == 0, said
    assert "layers [0, 4] of 5" in printed
    assert not (recipe.parent / "out").exists()


def test_help_teaches_the_way() -> None:
    done = subprocess.run([sys.executable, "-m", "understudy", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for verb in ("build", "score", "prune", "distill", "recover", "measure", "choose", "compare", "verify", "serve"):
        assert verb in done.stdout
