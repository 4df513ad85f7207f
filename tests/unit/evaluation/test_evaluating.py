"""The harness itself, on a pico model; left out where it is not installed ('make setup-evaluation')."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation.evaluating import Evaluation, evaluate, read_evaluation
from evaluation.harness import groups_of, headline, items_of
from evaluation.settings import EvaluateSettings
from pruning.plan import DepthPlan
from stages.errors import InputError
from tests.unit.pruning import pico

SETTINGS = EvaluateSettings(limit=3, max_length=640, batch_size=4, bootstrap=100, dtype="float32")


def sample(**values: object) -> dict:
    return {
        "filter": "none", "doc_id": 0, "doc_hash": "d", "prompt_hash": "p", "target_hash": "t", "metrics": ["acc"],
        "filtered_resps": [0], **values,
    }  # fmt: skip


def test_chance_is_one_of_the_choices_and_none_where_the_answer_is_free() -> None:
    chosen = items_of("t", [sample(filtered_resps=[0] * 4, acc=1), sample(filtered_resps=[0] * 2, acc=0)])
    assert chosen["chance"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert chosen["items"] == [1.0, 0.0]
    assert items_of("t", [sample(acc=1)])["chance"] == 0


def test_likelihoods_of_text_are_bits_over_bytes() -> None:
    found = items_of("t", [sample(metrics=["word_perplexity", "bits_per_byte"], bits_per_byte=(-693.147, 500))])
    assert found["items"] == pytest.approx([1000], rel=1e-4)
    assert found["weights"] == [500]


def test_a_task_is_scored_by_one_metric_and_one_filter() -> None:
    assert headline(sample(metrics=["acc", "acc_norm"], acc=1.0, acc_norm=0.0)) == "acc_norm"
    assert headline(sample(metrics=["something"], something=1)) == "something"
    assert headline(sample(metrics=["f1", "acc"], f1=(1, 0), acc=1.0)) == "acc", (
        "one of all items together is none of each"
    )
    assert items_of("t", [sample(acc=1), sample(acc=0, filter="other")])["items"] == [1.0]


def test_what_gives_no_score_for_each_item_is_refused() -> None:
    with pytest.raises(InputError, match=r"'t' has scores of all its items together only \(bleu\)"):
        items_of("t", [sample(metrics=["bleu"], bleu=("a", "b"))])


@pytest.mark.parametrize(
    "broken",
    [sample(acc=1, filtered_resps=[(-1.0, False), (float("nan"), False)]),
     sample(metrics=["bits_per_byte"], bits_per_byte=(float("nan"), 500))],
)  # fmt: skip
def test_a_model_that_computes_no_numbers_has_no_scores(broken: dict) -> None:
    with pytest.raises(InputError, match="'t'"):
        items_of("t", [broken])


def test_items_that_were_asked_otherwise_are_others() -> None:
    first, again, other = (items_of("t", [sample(acc=1, prompt_hash=text)]) for text in "ppq")
    assert first["items_sha256"] == again["items_sha256"] != other["items_sha256"]


def test_a_task_belongs_to_the_group_that_was_asked_for() -> None:
    leaves = [SimpleNamespace(task_name=name) for name in ("mmlu_a", "mmlu_b")]
    loaded = {"groups": {"mmlu": SimpleNamespace(get_all_tasks=lambda: leaves), "mmlu_stem": None}}
    assert groups_of(loaded, ("mmlu", "hellaswag")) == {"mmlu_a": "mmlu", "mmlu_b": "mmlu"}


def test_a_target_result_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"results": {}}')
    with pytest.raises(InputError, match="no result"):
        read_evaluation(tmp_path / "r.json")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Evaluation]:
    """A pico model, its result's file, and the result."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("evaluating")
    model = pico.save(pico.LLAMA.model(max_position_embeddings=640), folder / "target")
    return model, folder / "target.json", evaluate(model, folder / "target.json", SETTINGS)


def test_all_local_tasks_are_scored_in_the_harness_own_json(target: tuple[Path, Path, Evaluation]) -> None:
    _, file, made = target
    written = json.loads(file.read_text())
    assert {"results", "configs", "versions", "n-samples", "higher_is_better", "config"} <= written.keys()
    for score in made.tasks:
        assert written["results"][score.task][f"{score.metric},none"] == pytest.approx(score.score)
        assert score.low <= score.score <= score.high
        assert len(score.items) == 3
    assert read_evaluation(file) == made
    assert made.task("chat").chance == 0.25
    assert made.task("next_line").chance == 0


def test_requests_that_lose_their_beginning_are_counted(
    target: tuple[Path, Path, Evaluation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file, _ = target
    assert json.loads(file.read_text())["config"]["num_requests_cut"] == 0
    short = SETTINGS.model_copy(update={"tasks": ("next_line", "docstring"), "max_length": 256})
    evaluate(model, tmp_path / "cut.json", short)
    counted = json.loads((tmp_path / "cut.json").read_text())["config"]["num_requests_cut"]
    assert counted > 0
    assert f"{counted} requests were longer than 256 tokens" in capsys.readouterr().err


def test_a_model_keeps_all_of_itself(target: tuple[Path, Path, Evaluation], tmp_path: Path) -> None:
    model, file, _ = target
    settings = SETTINGS.model_copy(update={"tasks": ("perplexity", "chat")})
    kept = evaluate(model, tmp_path / "again.json", settings, against=file).retention
    assert kept is not None
    assert kept.bits_per_byte is not None
    assert kept.bits_per_byte.value == pytest.approx(1)
    assert kept.plain.value in (1, None)  # three items: it may have guessed all of them wrong


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, "was made with seed = 0, this evaluation with 7"),
        ({"limit": None}, "was made with limit = 3, this evaluation with None"),
        ({"tasks": ("chat", "hellaswag")}, "has no task 'hellaswag'"),
        ({"tasks": ("perplexity",)}, "needs a task with a score"),
        ({"dtype": "bfloat16"}, "was made with dtype = float32, this evaluation with bfloat16"),
    ],
)
def test_what_cannot_stand_beside_the_target_is_refused_before_any_work(
    target: tuple[Path, Path, Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, said: str
) -> None:
    model, file, _ = target
    monkeypatch.setattr("evaluation.harness.run", lambda *_: pytest.fail("it was evaluated"))
    with pytest.raises(InputError, match=said):
        evaluate(model, tmp_path / "r.json", SETTINGS.model_copy(update=changes), against=file)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file and not a folder"):
        evaluate(model, tmp_path / "file" / "r.json", SETTINGS)


def test_other_items_cost_the_retention_and_not_the_evaluation(
    target: tuple[Path, Path, Evaluation], tmp_path: Path
) -> None:
    """Task files may have changed since the target was asked; that shows once the items are there."""
    model, file, made = target
    others = tuple(score.model_copy(update={"items_sha256": "0"}) for score in made.tasks)
    written = json.loads(file.read_text())
    written["understudy"] = made.model_copy(update={"tasks": others}).model_dump(mode="json")
    (tmp_path / "target.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match="other items of 'understudy_chat'"):
        evaluate(
            model,
            tmp_path / "r.json",
            SETTINGS.model_copy(update={"tasks": ("chat",)}),
            against=tmp_path / "target.json",
        )
    found = read_evaluation(tmp_path / "r.json")
    assert found.retention is None
    assert found.task("chat") == made.task("chat")


def test_another_models_result_or_one_made_in_another_way_is_refused(
    target: tuple[Path, Path, Evaluation], tmp_path: Path
) -> None:
    model, file, made = target
    other = SETTINGS.model_copy(update={"max_length": 320})
    with pytest.raises(InputError, match="was made with max_length = 640, this evaluation with 320"):
        evaluate(model, tmp_path / "r.json", other, against=file)
    shutil.copytree(model, tmp_path / "pruned")
    plan = DepthPlan(
        target_sha256="ab" * 32, architecture="LlamaForCausalLM", num_layers=5, method="first", kept_layers=(0, 1)
    )
    plan.save(tmp_path / "pruned" / "plan.json")
    with pytest.raises(InputError, match=f"made for the target abababababab, not for {made.model_sha256[:12]}"):
        evaluate(tmp_path / "pruned", tmp_path / "r.json", SETTINGS, against=file)
