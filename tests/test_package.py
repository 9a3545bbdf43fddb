"""The package as it is installed and imported."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import torchgil

from .conftest import run_in_child
from .support.compiling import compile_extension, needs_compiler

ROOT = Path(__file__).parent.parent
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def test_every_public_name_resolves_and_nothing_else_does():
    for name in torchgil.__all__:
        assert getattr(torchgil, name) is not None
        assert name in dir(torchgil)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = torchgil.no_such_name


def test_importing_torchgil_imports_neither_torch_nor_the_extension():
    run_in_child(
        """
        import sys, torchgil
        assert torchgil.__version__
        assert "torch" not in sys.modules and "torchgil._gil" not in sys.modules
        """,
        fresh=True,
    )


def test_torchs_files_can_be_looked_at_before_it_is_imported():
    run_in_child(
        """
        import copy, importlib.util, pkgutil, sys, torchgil
        loader = importlib.util.find_spec("torch").loader
        assert loader.get_filename().endswith("__init__.py") and loader.is_package("torch")
        copy.copy(loader)
        assert "torch" not in sys.modules
        assert b"__version__" in pkgutil.get_data("torch", "version.py")
        """,
        fresh=True,
    )


@pytest.mark.parametrize("order", ["import torch; import torchgil", "import torchgil; import torch"])
def test_the_ops_are_registered_in_either_order(order):
    run_in_child(
        f"""
        {order}
        assert torch.ops.torchgil.add(torch.ones(2), torch.ones(2)).tolist() == [2, 2]
        import sys
        assert "torch._dynamo" not in sys.modules, "two seconds of import for nobody"
        """,
        fresh=order.endswith("import torch"),
    )


def test_no_extra_is_needed_to_import_and_use_it():
    run_in_child(
        """
        import sys
        for extra in ("rich", "matplotlib", "psutil", "prometheus_client"):
            sys.modules[extra] = None
        import torch, torchgil
        for name in torchgil.__all__:
            getattr(torchgil, name)
        torchgil.released.add(torch.ones(1), torch.ones(1))
        """
    )


@pytest.mark.parametrize(
    ("first", "last"),
    [("", "import torchgil; torchgil.released"), ("import torch", "import torchgil; torchgil.released")],
    ids=["torch not being there", "torch being there"],
)
def test_another_torch_is_named_with_the_command_that_mends_it(first, last):
    child = run_in_child(
        f"""
        import sys, types
        built_for = types.ModuleType("torchgil._built_for")
        built_for.TORCH_VERSION, built_for.PYTHON_VERSION = "1.2.3", "%d.%d" % sys.version_info[:2]
        sys.modules["torchgil._built_for"] = built_for
        {first}
        {last}
        """,
        check=False,
        fresh=not first,
    )
    import torch

    installed = torch.__version__.split("+")[0]
    assert child.exit_code == 1
    assert (
        f"ImportError: torchgil was built for torch 1.2.3 but torch {installed} is installed" in child.stderr
    )
    assert REBUILD in child.stderr
    assert "undefined symbol" not in child.stderr


def test_another_python_is_named():
    child = run_in_child(
        """
        import sys, types, torch
        built_for = types.ModuleType("torchgil._built_for")
        built_for.TORCH_VERSION, built_for.PYTHON_VERSION = torch.__version__.split("+")[0], "2.7"
        sys.modules["torchgil._built_for"] = built_for
        import torchgil
        torchgil.released
        """,
        check=False,
    )
    assert "torchgil was built for Python 2.7 but this is Python" in child.stderr


def with_torch(version):
    """Code that imports torchgil beside a torch of that version."""
    return f"""
        import sys, types, torch
        torch.__version__ = "{version}"
        built_for = types.ModuleType("torchgil._built_for")
        built_for.TORCH_VERSION = "{version}"
        built_for.PYTHON_VERSION = ".".join(map(str, sys.version_info[:2]))
        sys.modules["torchgil._built_for"] = built_for
        import torchgil
        """


def test_a_torch_too_old_is_refused_and_the_oldest_that_does_is_named():
    child = run_in_child(with_torch("2.8.1") + "torchgil.released", check=False)
    assert (
        "ImportError: torchgil needs torch 2.9 or later, and this is 2.8.1; install a newer one"
        in child.stderr
    )


def test_a_newer_torch_than_was_tried_is_a_warning_and_works():
    child = run_in_child(with_torch("99.1.0") + "torchgil.released.spin(0)")
    assert "RuntimeWarning: torchgil was tried with torch 2.9 to" in child.stderr
    assert "not with 99.1.0" in child.stderr


def test_where_warnings_are_errors_an_untried_torch_does_not_break_somebody_elses_import():
    run_in_child(
        """
        import warnings, torchgil, torchgil._versions
        torchgil._versions.untried = lambda version: f"not with {version}"
        warnings.simplefilter("error", RuntimeWarning)
        import torch
        try:
            torchgil.released
        except RuntimeWarning as warning:
            assert "not with" in str(warning)
        else:
            raise AssertionError("no word of it")
        """,
        fresh=True,
    )


@pytest.mark.parametrize(
    ("version", "text"), [("2.8.1", "torchgil needs torch 2.9"), ("99.1.0", "not with 99.1.0")]
)
def test_the_build_says_the_same(version, text, tmp_path):
    child = run_in_child(
        f"""
        import runpy, sys, torch, torch.utils.cpp_extension
        torch.__version__ = "{version}"
        sys.argv = ["setup.py", "--version"]
        runpy.run_path({str(ROOT / "setup.py")!r}, run_name="__main__")
        """,
        check=False,
    )
    assert text in child.stderr


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has another C++ library")
def test_a_compiler_that_links_its_own_cpp_library_is_refused(tmp_path):
    from torchgil._versions import compiler_objection

    source = tmp_path / "says.cpp"
    source.write_text("#include <iostream>\nvoid says(int n) { std::cout << n; }\n")
    assert compiler_objection(compile_extension(source)) is None
    own = compile_extension(source, "-static-libstdc++")
    assert "CXX=/usr/bin/g++" in compiler_objection(own)


def test_what_is_supported_is_what_was_tried_and_the_readme_names_each_pair():
    from torchgil._versions import NEWEST_TORCH, OLDEST_TORCH, series

    rows = json.loads((ROOT / "docs/compatibility.json").read_text())["rows"]
    if not rows:
        pytest.skip("no pair is kept: `make matrix` tries them")
    tried = {series(row["torch"]) for row in rows}
    assert (min(tried), max(tried)) == (OLDEST_TORCH, NEWEST_TORCH)
    readme = (ROOT / "README.md").read_text()
    for row in rows:
        python = ".".join(row["python"].split(".")[:2])
        assert f"{row['torch'].split('+')[0]} on {python}" in readme.replace("CPython ", "")


def test_the_page_of_compatibility_is_what_its_results_say():
    page = runpy.run_path(str(ROOT / ".ci/matrix"))["page"]
    kept = json.loads((ROOT / "docs/compatibility.json").read_text())
    assert (ROOT / "docs/compatibility.md").read_text() == page(kept), "run .ci/matrix --page"


def test_a_source_tree_that_was_not_built_says_so():
    child = run_in_child(
        """
        import sys
        sys.modules["torchgil._built_for"] = None
        import torchgil
        torchgil.released
        """,
        check=False,
        fresh=True,
    )
    assert "torchgil's C++ extensions are not built: this looks like a source tree" in child.stderr
    assert REBUILD in child.stderr


def test_an_unfit_extension_does_not_break_somebody_elses_import_of_torch():
    code = "import sys; sys.modules['torchgil._built_for'] = None\nimport torchgil, torch"
    run_in_child(code, fresh=True)


def test_one_openmp_runtime_is_loaded():
    """Ours is torch's: a second one would double the threads of every op."""
    child = run_in_child(
        """
        import torch, torchgil
        torchgil.released.rms_norm(torch.ones(512, 512), torch.ones(512))
        maps = open("/proc/self/maps").read().split()
        print(*sorted({p for p in maps if "libgomp" in p or "libiomp" in p or "libomp" in p}))
        """,
        fresh=True,
    )
    assert len(child.stdout.split()) == 1


def test_the_command_line_without_and_with_a_command():
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "torchgil", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )

    assert run("--version").stdout.strip() == f"torchgil {torchgil.__version__}"
    assert run().returncode == 2
    assert "commands:" in run("--help").stdout
    wrong = run("no-such-command")
    assert wrong.returncode == 2
    assert "no command 'no-such-command'" in wrong.stderr


def test_the_changes_of_this_version_have_a_section():
    assert f"\n## [{torchgil.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_torch_pin_stands_in_one_place():
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout
    if not tracked:
        pytest.skip("not a git checkout")
    with_pin = [
        name
        for name in tracked.splitlines()
        if (ROOT / name).suffix in ("", ".toml", ".py", ".cfg", ".txt", ".in")
        and name != "tests/test_package.py"
        if "torch==2" in (ROOT / name).read_text(errors="ignore")
    ]
    assert with_pin == ["pyproject.toml"]


def test_a_question_whether_torch_is_there_does_not_cost_the_ops():
    child = run_in_child(
        """
        import importlib.util, sys, torchgil
        for name in ("torch", "torch._dynamo"):
            assert importlib.util.find_spec(name) is not None
        import torch
        print(torch.ops.torchgil.add(torch.ones(1), torch.ones(1)).item(), torch.__spec__.loader.__module__)
        fn = torch.compile(lambda a: torchgil.released.add(a, a), fullgraph=True, backend="eager")
        print(fn(torch.ones(1)).item())
        print([f for f in sys.meta_path if type(f).__module__ == "torchgil._imports"])
        """,
        fresh=True,
    )
    assert child.stdout.splitlines() == ["2.0 _frozen_importlib_external", "2.0", "[]"]
