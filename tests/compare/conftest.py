"""What the tests of a comparison share: models to compare, and figures made up."""

from __future__ import annotations

import sys

import pytest

from torchgil.compare._contenders import Contender
from torchgil.compare._measure import Figures
from torchgil.compare._run import Result

SUBJECTS = """
import atexit, multiprocessing, os, pathlib, threading, time
import torch

def small():
    print("a factory may print")
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()), torch.randn(1, 8)

def keywords():
    return (lambda x, scale: x * scale), {"x": torch.ones(1, 2), "scale": torch.ones(1, 2)}

def broken():
    raise OSError("no weights here")

class Unpicklable(torch.nn.Linear):
    def __init__(self):
        super().__init__(8, 8)
        self.hook = lambda x: x

def unpicklable():
    return Unpicklable(), (torch.randn(1, 8),)

def two_rows():
    return (lambda x: x * 2), torch.randn(2, 8)

def rows_depend_on_each_other():
    return (lambda x: x - x.mean(0)), torch.randn(2, 8)

def nothing():
    return 5

def prints_at_exit():
    atexit.register(print, "bye")
    return (lambda x: x * 2), torch.ones(1, 2)

def slow_in_workers():
    if multiprocessing.parent_process() is not None:
        pathlib.Path("worker").write_text(str(os.getpid()))
        time.sleep(300)
    return (lambda x: x * 2), torch.ones(1, 2)

def tells_who_answers():
    return tell, torch.ones(1, 2)

def tell(x):
    pathlib.Path(f"answered_{os.getpid()}_{threading.get_ident()}").touch()
    return x

def fails_where_others_wait():
    first = iter([False, True])
    def answer(x):
        if next(first):
            raise OSError("the second answer")
        return x
    return answer, torch.ones(1, 2)

def view():
    return (lambda x: (x * 2)[:, 0]), torch.ones(1, 50, 8)
"""


THREADS = Contender("threads", 2, 1, nogil=True)


PROCESSES = Contender("processes", 2, 1)


@pytest.fixture
def subjects(tmp_path, monkeypatch):
    path = tmp_path / "subjects_of_compare.py"
    path.write_text(SUBJECTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, path.stem, raising=False)  # of the test before
    return "subjects_of_compare.py"


def found(way, *visits):
    """A way's result, of visits with these figures."""
    return Result(way, visits)


def figures(rate, memory=100.0, start_up=1.0, share=0.0):
    return Figures(start_up, rate, 0.01, 0.02, memory * 1.2, memory, 0, 0, share, max_batch_size=6)
