"""AOTInductor packages as files: foreign, damaged or incomplete ones, and what loading leaves behind."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchgil
from tests.conftest import run_in_child
from tests.forward.comparing import assert_same
from tests.forward.conftest import inputs
from torchgil.forward._archive import damage
from torchgil.forward._torch_compat import LOADS_FOLDERS


@pytest.mark.slow
def test_packages_for_other_machines_are_refused(rewritten: Any, library: str) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"was compiled for cuda, and there is no such device here"):
            torchgil.load_package(rewritten(AOTI_DEVICE_KEY="cuda"))
    with pytest.raises(RuntimeError, match=r"was compiled for riscv128, and this is"):
        torchgil.load_package(rewritten(AOTI_MACHINE="riscv128"))
    with pytest.raises(ValueError, match=r"made by a later torchgil \(format 2\)"):
        torchgil.load_package(rewritten(torchgil='{"format": 2}'))
    with pytest.raises(ValueError, match=r"metadata.json that is no JSON .*; make the package anew"):
        torchgil.load_package(rewritten(files={f"{library.removesuffix('.so')}_metadata.json": b""}))


@pytest.mark.slow
def test_a_package_cut_short_is_refused(forward: Any, tmp_path: Path) -> None:
    whole = Path(forward.path).read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 10):
        short = tmp_path / f"{length}.pt2"
        short.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"no \.pt2 package, or damaged: it cannot be read"):
            torchgil.load_package(short)


BROKEN = """
    import sys, torchgil
    try:
        torchgil.load_package(sys.argv[1])
    except RuntimeError as error:
        assert "torch cannot load" in str(error), error
    else:
        raise SystemExit("it was loaded")
"""


@pytest.mark.slow
@pytest.mark.skipif(not LOADS_FOLDERS, reason="torch before 2.13 leaves what it has unpacked")
def test_what_cannot_be_loaded_leaves_nothing(rewritten: Any, library: str) -> None:
    run_in_child(BROKEN, str(rewritten(files={library: b"no library"})))


@pytest.mark.slow
def test_a_package_is_unpacked_as_long_as_it_is_loaded(
    forward: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    again = torchgil.load_package(forward.path, runners=1)
    assert len(list(tmp_path.rglob("*.so"))) == LOADS_FOLDERS
    assert_same(again(*inputs(), 3, flag=True), forward(*inputs()))
    del again
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_package_with_objects_that_are_no_tensors_is_loaded(
    forward: Any, rewritten: Any, library: str
) -> None:
    """Torch keeps them apart in an archive, and looks for them beside the native code."""
    packed = torch.ops.quantized.linear_prepack_fp16(torch.ones(4, 4), None)
    top, folder = library.split("/")[0], library.rpartition("/")[0]
    files = {
        f"{library.removesuffix('.so')}.json": b'{"nodes": []}',
        f"{folder}/custom_objs_config.json": b'{"packed": "custom_obj_0"}',
        f"{top}/data/constants/custom_obj_0": bytes(torch._C._pickle_save(packed)),
    }
    again = torchgil.load_package(rewritten(files=files))
    assert_same(again(*inputs(), 3, flag=True), forward(*inputs()))


@pytest.mark.slow
def test_code_without_its_weights_is_refused(forward: Any) -> None:
    from torch._inductor import config

    with (
        config.patch({"aot_inductor.package_constants_in_so": False}),
        pytest.raises(ValueError, match=r"\.pt2' holds code without its weights, .*; make it anew with"),
    ):
        torchgil.nogil(nn.Linear(4, 4), (torch.ones(2, 4),), backend="inductor")


DAMAGED = """
    import random, sys, zipfile
    from pathlib import Path
    import torch, torchgil
    whole, target = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
    x, more = torch.ones(4, 8), {"bias": torch.ones(8)}
    expected = torchgil.load_package(sys.argv[1], runners=1)(x, more, 3, flag=True)["y"]
    headers = set(range(len(whole)))
    with zipfile.ZipFile(sys.argv[1]) as archive:
        for item in archive.infolist():
            content = archive.read(item)
            headers -= set(range(at := whole.index(content), at + len(content)))
    generator = random.Random(0)
    refused = 0
    for place in generator.sample(sorted(headers), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        target.write_bytes(damaged)
        try:
            forward = torchgil.load_package(target, runners=1)
        except (ValueError, RuntimeError) as error:
            assert str(target) in str(error), error
            refused += 1
        else:  # a date, say, or what fills the room up to the next file
            assert torch.equal(forward(x, more, 3, flag=True)["y"], expected)
    print(refused)
"""


@pytest.mark.slow
def test_a_flipped_bit_of_the_headers_is_refused_or_harmless(forward: Any, tmp_path: Path) -> None:
    child = run_in_child(DAMAGED, forward.path, str(tmp_path / "flipped.pt2"))
    assert int(child.stdout) > 0


def test_any_flipped_bit_of_an_archive_s_headers_is_an_answer(tmp_path: Path) -> None:
    """Archives of many disks, say, are an exception of zipfile's own, even to is_zipfile."""
    target = tmp_path / "archive.zip"
    files = {"one": b"1" * 40, "two": b"2" * 40}
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert damage(target) == ""
    whole = target.read_bytes()
    said = set()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            target.write_bytes(damaged)
            found = damage(target)
            said.add(found.partition(" (")[0])
            if not found:
                with zipfile.ZipFile(target) as archive:
                    assert {name: archive.read(name) for name in archive.namelist()} == files
    assert said >= {
        "",
        "it cannot be read",
        "the checksum of one differs",
        "the header of one hides other files",
    }


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_of_a_package_is_named(forward: Any, tmp_path: Path) -> None:
    whole = Path(forward.path).read_bytes()
    with zipfile.ZipFile(forward.path) as archive:
        files = [item for item in archive.infolist() if item.file_size]
        assert {Path(item.filename).suffix for item in files} >= {".so", ".json"}
        for item in files:
            content = archive.read(item)
            damaged = bytearray(whole)
            damaged[whole.index(content) + len(content) // 2] ^= 1
            target = tmp_path / "flipped.pt2"
            target.write_bytes(damaged)
            with pytest.raises(
                ValueError, match=r"flipped\.pt2' is .*damaged: the checksum of .*copy it again, or make"
            ):
                torchgil.load_package(target)


@pytest.mark.slow
def test_a_damaged_package_in_the_cache_is_compiled_anew(
    model: nn.Module, forward: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / Path(forward.path).name
    whole = Path(forward.path).read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    compiled = []

    def compile_(program: Any, manifest: str, path: Path, freeze: bool) -> Path:
        compiled.append(path)
        path.write_bytes(whole)
        return path

    monkeypatch.setattr("torchgil.forward._inductor._compile", compile_)
    with pytest.warns(UserWarning, match=r"the kept package .* is damaged and compiled anew: it cannot"):
        again = torchgil.nogil(
            model,
            (*inputs(), 3),
            {"flag": True},
            dynamic_shapes={"x": {0: Dim("rows", max=64)}, "more": {"bias": {}}, "k": None, "flag": None},
            backend="inductor",
            runners=1,
            cache_dir=tmp_path,
        )
    assert len(compiled) == 1
    assert_same(again(*inputs(), 3, flag=True), forward(*inputs()))


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        torchgil.load_package(tmp_path / "missing.pt2")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        torchgil.load_package(tmp_path)
    program = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), program)
    with pytest.raises(ValueError, match="holds no compiled model; expected one named 'model'"):
        torchgil.load_package(program)
    named = tmp_path / "named.pt2"
    with zipfile.ZipFile(named, "w") as archive:
        archive.writestr("named/data/aotinductor/encoder/a.so", b"")
    with pytest.raises(ValueError, match="holds only the models encoder"):
        torchgil.load_package(named)
    with pytest.raises(ValueError, match="runners must be "):
        torchgil.load_package(program, runners=0)
