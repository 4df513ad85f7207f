import errno
from pathlib import Path

import pytest

from stages.errors import StorageError
from stages.folders import partial_of, publish, write_text


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), publish(out) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not out.exists()
    assert not partial_of(out).exists()


def test_an_old_folder_stays_until_the_new_one_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with publish(out) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), publish(out) as folder:
        raise RuntimeError
    assert (out / "a").read_text() == "old"
    with publish(out) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in out.iterdir()] == ["b"]


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


def test_a_real_full_device_is_reported() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    from drafts.distilling import Writer

    with pytest.raises(StorageError, match="disk is full"):
        Writer(Path("/dev/full"), [{"id": "x"}])


def test_text_is_written_by_rename(tmp_path: Path) -> None:
    write_text(tmp_path / "sub" / "a.json", "{}")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.json"]
