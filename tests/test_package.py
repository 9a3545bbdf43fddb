"""The package as it is installed and imported."""

import subprocess
import sys
from pathlib import Path

import pytest

import torchgil

from .conftest import run_in_child

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
        assert "torch" not in sys.modules and "torchgil._C" not in sys.modules
        """
    )


@pytest.mark.parametrize("order", ["import torch; import torchgil", "import torchgil; import torch"])
def test_the_ops_are_registered_in_either_order(order):
    run_in_child(
        f"""
        {order}
        assert torch.ops.torchgil.add(torch.ones(2), torch.ones(2)).tolist() == [2, 2]
        import sys
        assert "torch._dynamo" not in sys.modules, "two seconds of import for nobody"
        """
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
    [("", "import torchgil; torchgil.released"), ("import torch", "import torchgil")],
    ids=["on first use", "on import, torch being there"],
)
def test_another_torch_is_named_with_the_command_that_mends_it(first, last):
    child = run_in_child(
        f"""
        import sys, types
        built_for = types.ModuleType("torchgil._built_for")
        built_for.TORCH_VERSION, built_for.PYTHON_VERSION = "1.2.3", "3.11"
        sys.modules["torchgil._built_for"] = built_for
        {first}
        {last}
        """,
        check=False,
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
        """,
        check=False,
    )
    assert "torchgil was built for Python 2.7 but this is Python" in child.stderr


def test_a_source_tree_that_was_not_built_says_so():
    child = run_in_child(
        """
        import sys
        sys.modules["torchgil._built_for"] = None
        import torchgil
        torchgil.released
        """,
        check=False,
    )
    assert "torchgil's C++ extension is not built: this looks like a source tree" in child.stderr
    assert REBUILD in child.stderr


def test_an_unfit_extension_does_not_break_somebody_elses_import_of_torch():
    run_in_child("import sys; sys.modules['torchgil._built_for'] = None\nimport torchgil, torch")


def test_one_openmp_runtime_is_loaded():
    """Ours is torch's: a second one would double the threads of every op."""
    child = run_in_child(
        """
        import torch, torchgil
        torchgil.released.rms_norm(torch.ones(512, 512), torch.ones(512))
        maps = open("/proc/self/maps").read().split()
        print(*sorted({p for p in maps if "libgomp" in p or "libiomp" in p or "libomp" in p}))
        """
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
        """
    )
    assert child.stdout.splitlines() == ["2.0 _frozen_importlib_external", "2.0", "[]"]
