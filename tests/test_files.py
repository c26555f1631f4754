"""A file or folder is there whole, old or new; what failed leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagine.files import atomic_path, atomic_write, leftovers, recover_folder, replace_folder, temporary_path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_write_replaces_text_and_bytes_and_makes_folders(tmp_path):
    file = tmp_path / "a" / "b.json"
    atomic_write(file, "ä\n")
    assert file.read_bytes() == "ä\n".encode()
    atomic_write(file, b"\0\1")
    assert file.read_bytes() == b"\0\1" and names(file.parent) == ["b.json"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "x"
    atomic_write(file, "old")
    with pytest.raises(RuntimeError), atomic_path(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and names(tmp_path) == ["x"]


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "state"
    for content in ("one", "two"):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(folder) == ["two"] and names(tmp_path) == ["state"]
    with pytest.raises(RuntimeError), atomic_path(folder) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert names(folder) == ["two"] and names(tmp_path) == ["state"]


def test_a_kill_between_the_renames_is_undone(tmp_path, monkeypatch):
    folder, new = tmp_path / "state", tmp_path / "new"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(FileNotFoundError):  # there is no new folder: stops after the old one went aside
        replace_folder(new, folder)
    assert not folder.exists()
    recover_folder(folder)
    assert names(folder) == ["old"]
    new.mkdir()
    replace_folder(new, folder)
    recover_folder(folder)  # nothing to do
    assert names(folder) == [] and names(tmp_path) == ["state"]


def test_names_are_unique_and_leftovers_are_those_of_dead_processes(tmp_path):
    file = tmp_path / "deep" / "part.parquet"
    mine = {temporary_path(file) for _ in range(100)}
    assert len(mine) == 100
    file.parent.mkdir()
    kept = mine.pop()
    kept.touch()
    (file.parent / ".strange.tmp").touch()
    code = f"from imagine.files import temporary_path; p = temporary_path({str(file)!r}); p.touch(); print(p)"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert list(leftovers(tmp_path)) == [Path(dead.stdout.strip())]
