"""A file is there whole or not at all, and otherwise what it was: its mode, its links, what they lead to."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from tests.tracing.test_report import ADD, report
from torchgil._files import whole, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="modes and links")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix
@pytest.mark.parametrize("before", [0o600, 0o644, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, before):
    path = tmp_path / "report.json"
    path.write_text("the one before")
    path.chmod(before)
    write_whole(path, "new")
    assert (path.read_text(), mode(path)) == ("new", before)


@posix
def test_a_new_file_gets_the_mode_that_any_new_one_gets(tmp_path):
    other = tmp_path / "other"
    other.write_text("")
    write_whole(tmp_path / "report.json", ["new", "er"])
    assert mode(tmp_path / "report.json") == mode(other)
    assert sorted(os.listdir(tmp_path)) == ["other", "report.json"]


@posix
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there/old", "there/new"):
        link = tmp_path / f"link to {Path(name).name}"
        link.symlink_to(name)
        if name == "there/old":
            (tmp_path / name).write_text("the one before")
        write_whole(link, "new")
        assert link.is_symlink()
        assert (tmp_path / name).read_text() == "new"


@posix
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_written_to_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    thread.start()
    write_whole(tmp_path / "pipe", ["a", "b"])
    thread.join(60)
    assert read == ["ab"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/fd")
def test_anothers_open_file_is_written_to_and_not_replaced(tmp_path):
    with open(tmp_path / "log", "w+") as log:
        write_whole(f"/dev/fd/{log.fileno()}", "new")
        assert log.read() == "new"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/stdout")
def test_so_it_is_behind_a_link_of_ones_own(tmp_path):
    with open(tmp_path / "log", "w+") as log:
        (tmp_path / "link").symlink_to(f"/dev/fd/{log.fileno()}")
        write_whole(tmp_path / "link", "new")
        assert log.read() == "new"


@posix
@pytest.mark.parametrize("why", [errno.EBUSY, errno.EPERM])
def test_a_file_whose_place_cannot_be_taken_is_written_in_it(why, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("the one before, longer")

    def refusing(source, target):  # as for a mount point, or another's file in /tmp
        raise OSError(why, os.strerror(why), source)

    monkeypatch.setattr(os, "replace", refusing)
    write_whole(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(OSError, match="other") as raised:
        write_whole(tmp_path / "other", "new")
    assert raised.value.errno == why
    assert os.listdir(tmp_path) == ["report.json"]


@posix
def test_a_name_may_be_bytes_and_must_not_end_as_a_folders(tmp_path):
    write_whole(os.fsencode(tmp_path / "report.json"), "new")
    with pytest.raises(IsADirectoryError):
        write_whole(f"{tmp_path}/folder/", "new")
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_folder_is_refused_by_its_name_and_nothing_lies_beside_it(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "folder").mkdir()
    one = report(ADD)
    for save in (one.plot, one.save_json, one.save_chrome_trace, one.save_html):
        with pytest.raises(IsADirectoryError) as raised:
            save(tmp_path / "folder")
        assert raised.value.filename == str(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_picture_is_where_it_was_asked_for_with_an_ending_or_without(tmp_path):
    pytest.importorskip("matplotlib")
    report(ADD).plot(tmp_path / "picture")
    report(ADD).plot(tmp_path / "picture.SVG")
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "picture.SVG").read_bytes()
    with pytest.raises(ValueError, match="Format 'nothing' is not supported"):
        report(ADD).plot(tmp_path / "picture.nothing")
    assert sorted(os.listdir(tmp_path)) == ["picture", "picture.SVG"]


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(tmp_path / "nowhere" / "report.json", "new")
    assert raised.value.filename == str(tmp_path / "nowhere" / "report.json")
    with pytest.raises(OSError, match="No space left") as full, whole(tmp_path / "report.json"):
        raise OSError(28, "as a full disk says, of a file whose name nobody knows")
    assert full.value.filename == str(tmp_path / "report.json")
    assert os.listdir(tmp_path) == []


@posix
def test_a_file_in_a_folder_that_takes_no_new_ones_is_written_in_its_place(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("the one before")
    original = os.open

    def refusing(name, flags, *more, **options):  # whoever runs the tests may be allowed everything
        if flags & os.O_EXCL:
            raise PermissionError(13, "Permission denied", name)
        return original(name, flags, *more, **options)

    monkeypatch.setattr(os, "open", refusing)
    write_whole(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(PermissionError) as raised:
        write_whole(tmp_path / "another", "new")
    assert raised.value.filename == str(tmp_path / "another")
