"""torchgil new: what it writes is the example, and what it refuses leaves nothing behind."""

import subprocess
from pathlib import Path

import pytest

from torchgil.cli import main

ROOT = Path(__file__).parent.parent.parent


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_the_example_is_what_it_writes(tmp_path, capsys):
    assert main(["new", "my_op", "--dir", str(tmp_path)]) == 0
    assert "pip install --no-build-isolation -e ." in capsys.readouterr().out
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "."],
        cwd=ROOT / "examples" / "my_op",
        capture_output=True,
        text=True,
    )
    written = files(tmp_path / "my_op")
    if listed.returncode == 0:  # a checkout: what lies there beside products of a build
        assert set(listed.stdout.split()) == set(written)
    assert {path: (ROOT / "examples" / "my_op" / path).read_text() for path in written} == written


def test_every_name_in_it_is_the_new_one(tmp_path):
    assert main(["new", "Blur2", "--dir", str(tmp_path / "deeper" / "still")]) == 0
    written = files(tmp_path / "deeper" / "still" / "Blur2")
    assert {"csrc/Blur2.cpp", "Blur2/__init__.py", "tests/test_Blur2.py"} < set(written)
    assert not [path for path, text in written.items() if "my_op" in path + text]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my-op", "cannot be imported"),
        ("2op", "cannot be imported"),
        ("", "cannot be imported"),
        ("../op", "cannot be imported"),
        ("op_", "cannot be imported"),
        ("größe", "cannot be imported"),
        ("class", "is taken"),
        ("json", "is taken"),
        ("torch", "is taken"),
        ("test", "is taken"),
        ("match", "is taken"),
        ("quantized", "is taken"),
        ("csrc", "is taken"),
        ("numpy", "is taken, by the module "),
        ("NumPy", "is taken, by the installed package numpy"),
        ("pytest", "is taken, by the module "),
        ("my-op", "my_op could"),
    ],
)
def test_unfit_names_are_refused(tmp_path, capsys, name, reason):
    assert main(["new", name, "--dir", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    written = []
    original = Path.write_text

    def interrupted(self, *args, **options):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(["new", "op", "--dir", str(tmp_path)])
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_not_overwritten(tmp_path, capsys, kind):
    path = tmp_path / "op"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("nowhere")
    assert main(["new", "op", "--dir", str(tmp_path)]) == 2
    assert "exists already: nothing was written" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [path]
    assert kind != "file" or path.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["new", "op", "--dir", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
