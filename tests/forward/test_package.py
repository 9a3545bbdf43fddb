"""AOTInductor packages: what they give, what they refuse, and that calls run at once without the GIL."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torchgil
from tests.conftest import in_threads, run_in_child
from tests.forward import hostile
from tests.forward.comparing import assert_close, assert_same
from torchgil._build import C
from torchgil.forward.archive import damage
from torchgil.forward.torch_compat import LOADS_FOLDERS


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, more: dict[str, Tensor], k: int = 3, *, flag: bool = True) -> dict[str, Any]:
        y = self.linear(x).relu() + more["bias"] * k
        return {"y": y, "rows": x.shape[0], "ratio": x.shape[0] / 2, "three": 3, "none": None}


def inputs(rows: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 8, generator=generator), {"bias": torch.randn(8, generator=generator)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def forward(model: nn.Module, request: pytest.FixtureRequest) -> Any:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler to compile the package with")
    assert request.config.cache is not None
    return torchgil.nogil(
        model,
        (*inputs(), 3),
        {"flag": True},
        dynamic_shapes={"x": {0: Dim("rows", max=64)}, "more": {"bias": {}}, "k": None, "flag": None},
        backend="inductor",
        runners=2,
        cache_dir=request.config.cache.mkdir("packages"),
    )


@pytest.fixture
def rewritten(forward: Any, tmp_path: Path) -> Callable[..., Path]:
    """The package with other metadata, as another machine or another program would have written it."""

    def rewrite(
        drop: str = "", emptied: bool = False, files: Mapping[str, bytes] | None = None, **changes: str
    ) -> Path:
        target = tmp_path / "other.pt2"
        more = dict(files or {})
        with zipfile.ZipFile(forward.path) as old, zipfile.ZipFile(target, "w") as new:
            for item in old.infolist():
                data = old.read(item)
                if item.filename.endswith("_metadata.json"):
                    kept = {key: value for key, value in json.loads(data).items() if key != drop}
                    data = b"" if emptied else json.dumps({**kept, **changes}).encode()
                new.writestr(item.filename, more.pop(item.filename, data))
            for name, data in more.items():
                new.writestr(name, data)
        return target

    return rewrite


@pytest.mark.slow
def test_results_are_the_models(model: nn.Module, forward: Any) -> None:
    for rows in (1, 4, 64):
        x, more = inputs(rows)
        got = forward(x, more, 3, flag=True)
        with torch.inference_mode():
            assert_close(got, model(x, more))
        assert (got["rows"], got["ratio"], got["three"], got["none"]) == (rows, rows / 2, 3, None)
        assert_close(forward(x, more=more), got)
    assert forward.checked
    assert "runners=2, inputs=checked, device='cpu', backend='inductor'" in repr(forward)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        (
            (torch.ones(4, 7), inputs()[1]),
            {},
            ValueError,
            r"'x' was exported as float32\[rows, 8\].*must be 8, not 7",
        ),
        (
            (torch.ones(65, 8), inputs()[1]),
            {},
            ValueError,
            "'x' .*rows must be at least 0 and at most 64, not 65",
        ),
        ((torch.ones(4, 8).long(), inputs()[1]), {}, ValueError, "'x' .*its dtype differs"),
        ((inputs()[0], {"other": torch.ones(8)}), {}, TypeError, "'more' was exported with the keys 'bias'"),
        ((*inputs(), 4), {}, ValueError, "'k' was exported as the constant 3, got 4"),
        ((inputs()[0],), {}, TypeError, "missing a required argument: 'more'"),
    ],
)
def test_arguments_are_checked(
    forward: Any, args: Any, kwargs: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        forward(*args, **kwargs)


@pytest.mark.slow
def test_inputs_of_other_strides_give_the_same_results(forward: Any) -> None:
    x, more = inputs()
    transposed = x.mT.contiguous().mT
    assert transposed.stride() != x.stride()
    assert_same(forward(transposed, more), forward(x, more))
    assert_same(forward(x[:, ::1].repeat(1, 2)[:, :8], more), forward(x, more))


def test_inputs_of_no_known_format_are_refused() -> None:
    with pytest.raises(
        NotImplementedError, match=r"strides of its inputs, and those of 'input' are \(1, 4\)"
    ):
        torchgil.nogil(nn.Linear(8, 2), (torch.ones(8, 4).mT,), backend="inductor")


@pytest.mark.slow
def test_a_call_releases_the_gil_once_and_calls_run_at_once(forward: Any) -> None:
    calls = [inputs(rows) for rows in range(1, 9)]
    wanted = [forward(*call) for call in calls]

    def work(thread: int) -> int:
        before = C.forward_releases()
        for _ in range(20):
            assert_same(forward(*calls[thread]), wanted[thread])
        return C.forward_releases() - before

    assert in_threads(work, 8) == [20] * 8  # eight callers, two runners


@pytest.mark.slow
def test_a_kept_package_is_loaded_again_with_its_checks(forward: Any) -> None:
    again = torchgil.load_package(forward.path, runners=1)
    assert_same(again(*inputs(), 3, flag=True), forward(*inputs()))
    with pytest.raises(ValueError, match=r"'x' .*rows must be at least 0 and at most 64"):
        again(torch.ones(65, 8), inputs()[1], 3, flag=True)
    with pytest.raises(TypeError, match=r"cannot be pickled or copied; send the .pt2 file"):
        pickle.dumps(again)


@pytest.mark.slow
def test_a_package_of_another_program_checks_what_it_can(forward: Any, rewritten: Any) -> None:
    other = torchgil.load_package(rewritten(drop="torchgil"))
    assert not other.checked
    assert "inputs=unchecked" in repr(other)
    assert_same(other(*inputs(), 3, flag=True)["y"], forward(*inputs())["y"])
    with pytest.raises(TypeError, match=r"missing 'argument 1'"):
        other(inputs()[0])
    with pytest.raises(TypeError, match=r"with the keys 'bias', got 'more'"):
        other(inputs()[0], {"more": 1}, 3, flag=True)
    with pytest.raises(ValueError, match="package input 0 is on meta, but the package was compiled for cpu"):
        other(torch.ones(4, 8, device="meta"), inputs()[1], 3, flag=True)


@pytest.mark.slow
def test_packages_for_other_machines_are_refused(rewritten: Any) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"was compiled for cuda, and there is no such device here"):
            torchgil.load_package(rewritten(AOTI_DEVICE_KEY="cuda"))
    with pytest.raises(RuntimeError, match=r"was compiled for riscv128, and this is"):
        torchgil.load_package(rewritten(AOTI_MACHINE="riscv128"))
    with pytest.raises(ValueError, match=r"made by a later torchgil \(format 2\)"):
        torchgil.load_package(rewritten(torchgil='{"format": 2}'))
    with pytest.raises(ValueError, match=r"metadata.json that is no JSON .*; make the package anew"):
        torchgil.load_package(rewritten(emptied=True))


@pytest.mark.slow
def test_a_package_that_says_anything_of_its_arguments_is_refused_or_checks_them(
    forward: Any, rewritten: Any
) -> None:
    said = json.loads(forward.metadata["torchgil"])
    for seed in range(50):
        rng = random.Random(seed)
        try:
            other = torchgil.load_package(rewritten(torchgil=json.dumps(hostile.changed(said, rng))))
        except ValueError as error:
            assert "load_package" in str(error)  # noqa: PT017  (it need not raise)
            continue
        with contextlib.suppress(TypeError, ValueError):
            other(*inputs(), 3, flag=True)
    for sizes in ([-7, 8], ["s78", 8]):
        said["leaves"][0]["sizes"] = sizes
        with pytest.raises(ValueError, match=r"says of its arguments cannot be read: (no dimension 6|'s78')"):
            torchgil.load_package(rewritten(torchgil=json.dumps(said)))


@pytest.mark.slow
def test_a_package_cut_short_is_refused(forward: Any, tmp_path: Path) -> None:
    whole = Path(forward.path).read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 10):
        short = tmp_path / f"{length}.pt2"
        short.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"no \.pt2 package, or damaged: it cannot be read"):
            torchgil.load_package(short)


@pytest.fixture
def library(forward: Any) -> str:
    """The name of the package's native code in its archive."""
    with zipfile.ZipFile(forward.path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
    return name


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

    def compile_(program: Any, manifest: str, path: Path) -> Path:
        compiled.append(path)
        path.write_bytes(whole)
        return path

    monkeypatch.setattr("torchgil.forward.inductor._compile", compile_)
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


@pytest.mark.slow
def test_of_two_that_compile_at_once_each_packs_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor writes what it compiles where all processes do, under names that do not tell weights apart."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler to compile the package with")
    import torch._inductor.package

    x, one, other = torch.ones(2, 8), nn.Linear(8, 8).eval(), nn.Linear(8, 8).eval()
    pack = torch._inductor.package.package_aoti

    def compile_the_other_and_pack(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        assert_close(torchgil.nogil(other, (x,), backend="inductor")(x), other(x))
        return pack(*args, **kwargs)

    monkeypatch.setattr(torch._inductor.package, "package_aoti", compile_the_other_and_pack)
    assert_close(torchgil.nogil(one, (x,), backend="inductor")(x), one(x))
    assert torch._inductor.package.package_aoti is pack  # it was so


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
    with pytest.raises(ValueError, match="runners must be at least 1, got 0"):
        torchgil.load_package(program, runners=0)


def test_a_string_among_the_results_is_refused() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"x": x + 1, "name": "abc"}

    with pytest.raises(NotImplementedError, match="one output is the constant 'abc'"):
        torchgil.nogil(Named(), (torch.ones(2),), backend="inductor")


def test_an_int_that_changes_is_refused() -> None:
    class Zeros(nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            return torch.cat([x, torch.zeros(n)])

    with pytest.raises(NotImplementedError, match="takes no int that changes, and 'n' is one"):
        torchgil.nogil(Zeros(), (torch.ones(2), 4), dynamic_shapes=(None, Dim.DYNAMIC), backend="inductor")


def test_without_a_compiler_the_error_says_what_to_install() -> None:
    code = """
        import torch, torchgil
        torchgil.nogil(torch.nn.Linear(2, 2), (torch.ones(1, 2),), backend="inductor")
    """
    child = run_in_child(code, env={"PATH": "/nonexistent", "CXX": "no-such-compiler"}, check=False)
    assert child.exit_code == 1
    assert "needs a C++ compiler and found none; install g++ or clang++, or name it in CXX" in child.stderr
