import json
from pathlib import Path

import pytest
import yaml

from evaluation.settings import LOCAL_TASKS, TASK_FOLDER
from evaluation.tasks import is_local, read_task
from stages.errors import InputError


def make(folder: Path, lines: list[str], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    values = {"task": "t", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "far/away/t.jsonl"}}}
    (folder / "t.yaml").write_text(yaml.safe_dump({**values, "test_split": "test", **config}))
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_all_shipped_tasks_can_be_read() -> None:
    for name in LOCAL_TASKS:
        assert is_local(name, TASK_FOLDER)
        task = read_task(name, TASK_FOLDER, None, 0)
        assert len(task.items) >= 50
        assert task.config["task"] == f"understudy_{name}"
    assert not is_local("hellaswag", TASK_FOLDER)


def test_a_limit_takes_a_seeded_sample_in_order(tmp_path: Path) -> None:
    folder = make(tmp_path / "tasks", [json.dumps({"n": i}) for i in range(100)])
    numbers = [[item["n"] for item in read_task("t", folder, 20, seed).items] for seed in (0, 0, 1)]
    assert numbers[0] == numbers[1] == sorted(numbers[0])
    assert len(numbers[0]) == 20
    assert numbers[0] != numbers[2]
    assert read_task("t", folder, 20, 0).sha256 != read_task("t", folder, 20, 1).sha256
    assert len(read_task("t", folder, 500, 0).items) == 100


@pytest.mark.parametrize(
    ("lines", "config", "said"),
    [
        (['{"n": 1}', "{"], {}, "line 2"),
        (['{"n": 1}'], {}, "1 items"),
        (['{"n": 1}', '{"n": 2}'], {"dataset_kwargs": {}}, "needs 'task'"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(tmp_path: Path, lines: list[str], config: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_task("t", make(tmp_path / "tasks", lines, **config), None, 0)


def test_only_a_task_that_says_so_is_chat() -> None:
    chat = {name for name in LOCAL_TASKS if read_task(name, TASK_FOLDER, 2, 0).is_chat}
    assert chat == {"chat"}
