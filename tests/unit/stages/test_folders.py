import errno
from pathlib import Path

import pytest

from stages.errors import InputError, StorageError
from stages.folders import MARK, check_place, partial_of, publish, write_text


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), publish(out) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not out.exists()
    assert not partial_of(out).exists()


def test_a_file_elsewhere_is_not_blamed_on_what_is_written(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "made" / "out", tmp_path / "made" / "model.safetensors"
    named = [(elsewhere, elsewhere), (out / "a", out), (partial_of(out) / "a", out), (out.parent, out), (None, out)]
    for file, blamed in named:
        with pytest.raises(StorageError, match=f"^{blamed}: cannot be"), publish(out):
            raise PermissionError(errno.EACCES, "Permission denied", file and str(file))


def test_an_old_folder_stays_until_the_new_one_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with publish(out) as folder:
        (folder / MARK).write_text('{"stage": "prune"}')
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), publish(out) as folder:
        raise RuntimeError
    assert (out / "a").read_text() == "old"
    with publish(out, stage="prune") as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in out.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_no_stage_wrote_is_never_replaced(tmp_path: Path) -> None:
    target, file = tmp_path / "models" / "llama", tmp_path / "file"
    target.mkdir(parents=True)
    (target / "model.safetensors").write_text("weights")
    file.write_text("")
    for place in (target, target.parent, file):
        with pytest.raises(InputError, match="give another"), publish(place):
            pytest.fail("began to write")
    assert (target / "model.safetensors").read_text() == "weights"


def test_the_folder_of_another_stage_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text('{"stage": "prune"}')
    with pytest.raises(InputError, match="was written by 'prune'"), publish(tmp_path, stage="recover"):
        pytest.fail("began to write")


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with publish(tmp_path / "link") as folder:
        (folder / "a").write_text("x")
    assert (tmp_path / "real" / "a").read_text() == "x"


def test_what_an_interrupted_run_left_can_be_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), publish(out, keep_partial=True) as folder:
        (folder / "done").write_text("1")
        raise KeyboardInterrupt
    with publish(out, keep_partial=True) as folder:
        assert (folder / "done").read_text() == "1"
    assert out.exists()


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the disk is full; free some space"), publish(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_real_full_device_is_reported(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    from drafts.distilling import Asked, Writer
    from drafts.prompts import Prompt

    writer = Writer(tmp_path / "data.jsonl", [], "0" * 64)
    writer._file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(StorageError, match="disk is full"):
        writer.write(Asked(0, Prompt(prompt="x"), 0.0, 0), "answer", "stop")


def test_text_is_written_by_rename(tmp_path: Path) -> None:
    write_text(tmp_path / "sub" / "a.json", "{}")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.json"]


def test_a_place_that_cannot_be_written_in_the_end_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file is a file and not a folder; choose another --out"):
        check_place(tmp_path / "file" / "out" / "deeper")
    check_place(tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_folder_without_permission_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.folders.os.access", lambda place, _: place != tmp_path)  # root may write anywhere
    with pytest.raises(StorageError, match=r"no permission for .*; choose another --out"):
        check_place(tmp_path / "out")
