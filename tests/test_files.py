"Files that are whole or not there: on shared disks, behind links, and when the disk is full."

import io
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tune_a_video_nbs import files
from tune_a_video_nbs.errors import ExistingFileError, FileAccessError, InputError
from tune_a_video_nbs.files import (
    append_line,
    check_free,
    part_name,
    read_json,
    save_atomic,
    save_json,
    save_text,
    sweep_parts,
    whole_folder,
)


@pytest.fixture
def dead():
    "The number of a process that has ended."
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def named(path, host=None, pid=None, started=None):
    "A temporary name, with another machine, process or start."
    name = part_name(path).name
    mine = f"{files._host_name()}-{os.getpid()}-{int(psutil.Process().create_time())}"
    assert mine in name
    host = host or files._host_name()
    pid = pid or os.getpid()
    started = started or int(psutil.Process().create_time())
    part = path.with_name(name.replace(mine, f"{host}-{pid}-{started}"))
    part.write_text("half")
    return part


def test_only_dead_writers_of_this_machine_are_swept(tmp_path, dead):
    target = tmp_path / "c"
    killed = named(target, pid=dead)
    renumbered = named(target, started=1)  # this process's number, but of another start
    alive = named(target)
    elsewhere = named(target, host="another_machine", pid=dead)
    other_file = named(tmp_path / "other.c", pid=dead)
    odd = tmp_path / ".c.hello.part"
    odd.write_text("half")
    sweep_parts(target)
    assert not killed.exists() and not renumbered.exists()
    assert all(p.exists() for p in (alive, elsewhere, other_file, odd))


def test_a_process_that_may_not_be_asked_is_alive(tmp_path, dead, monkeypatch):
    def refuse(pid=None):
        raise psutil.AccessDenied(pid)

    part = named(tmp_path / "c", pid=dead)
    monkeypatch.setattr(files.psutil, "Process", refuse)
    sweep_parts(tmp_path / "c")
    assert part.exists()


def test_saving_sweeps_first(tmp_path, dead):
    named(tmp_path / "c", pid=dead)
    save_text(tmp_path / "c", "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    real = save_text(tmp_path / "disk" / "real.txt", "old")
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    seen = []

    def write(part):
        seen.append(part.parent)
        part.write_text("new")

    assert save_atomic(write, link) == link
    assert link.is_symlink() and real.read_text() == "new" and not real.is_symlink()
    assert seen == [tmp_path / "disk"]  # on the target's own disk, or the rename would not be one step
    (tmp_path / "ahead.txt").symlink_to(tmp_path / "disk" / "new" / "place.txt")
    save_text(tmp_path / "ahead.txt", "made")
    assert (tmp_path / "ahead.txt").is_symlink() and (tmp_path / "disk/new/place.txt").read_text() == "made"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    save_text(tmp_path / "c", "old")

    def full(part):
        os.symlink("/dev/full", part)
        part.write_bytes(b"x" * 100)

    with pytest.raises(OSError, match="No space left"):
        save_atomic(full, tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["c"] and (tmp_path / "c").read_text() == "old"


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), rename(a, b)))
    save_text(tmp_path / "c", "x")
    assert order == ["sync", "rename"]
    append_line(tmp_path / "c", "y")
    assert order == ["sync", "rename", "sync"]


def test_json_knows_no_nan(tmp_path):
    save_json(tmp_path / "a.json", {"b": [1, None, "ü"]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None, "ü"]}
    assert "ü" in (tmp_path / "a.json").read_text("utf-8")
    with pytest.raises(InputError, match="a.json"):
        save_json(tmp_path / "a.json", {"b": float("inf")})
    assert read_json(tmp_path / "a.json") == {"b": [1, None, "ü"]}


def test_lines_are_whole(tmp_path):
    log = tmp_path / "log"
    append_line(log, "one")
    with log.open("ab") as f:
        f.write(b"to")  # torn
    append_line(log, "zwölf")
    assert log.read_text("utf-8").split("\n") == ["one", "to", "zwölf", ""]


def test_half_a_line_is_an_error(tmp_path, monkeypatch):
    "An unbuffered write on a full disk may be short, and raises nothing by itself."

    class Full(io.FileIO):
        def write(self, data):
            return super().write(data[: len(data) // 2])

    def open_full(path, mode, buffering=-1):
        return Full(path, "a+")

    append_line(tmp_path / "log", "one")
    monkeypatch.setattr(files, "open", open_full, raising=False)
    with pytest.raises(FileAccessError, match="2 of 4 bytes were written"):
        append_line(tmp_path / "log", "two")
    monkeypatch.undo()
    append_line(tmp_path / "log", "three")
    assert (tmp_path / "log").read_text().split("\n") == ["one", "tw", "three", ""]


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a" / "b") as part:
        (part / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").mkdir()
    with whole_folder(tmp_path / "b") as part:
        (part / "all").touch()
        assert not list((tmp_path / "b").iterdir())
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["all"]


@pytest.mark.parametrize(
    "name, words", [("file", "is a file"), ("run", "another run"), ("full", "not empty")]
)
def test_what_is_taken_is_left_alone(tmp_path, name, words):
    (tmp_path / "file").touch()
    for folder, inside in (("run", "run.json"), ("full", "x")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / inside).touch()
    with pytest.raises(ExistingFileError, match=words):
        check_free(tmp_path / name)


def test_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="a folder of its own"):
        check_free(".")
