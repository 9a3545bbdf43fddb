"""Each way of serving a model, made ready: what it loads, whom it asks, what it sends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchgil
from tests.compare.conftest import PROCESSES, THREADS
from torchgil.compare._contenders import Contender, contenders
from torchgil.compare._services import moved_bytes, start
from torchgil.compare._subject import load


def test_every_way_of_serving_is_compared():
    rows = contenders(2, 2, quick=False)
    assert len(set(rows)) == len(rows) == len({row.name for row in rows})
    for wanted in (
        Contender("single", 1, 1),
        Contender("threads", 2, 1),
        THREADS,
        PROCESSES,
        Contender("shared", 2, 1),
        Contender("threads", 2, 1, nogil=True, asyncio=True),
        Contender("threads", 2, 1, nogil=True, batching=True),
        Contender("threads", 4, 2, nogil=True),  # of the grid
    ):
        assert wanted in rows
    assert set(contenders(2, 2, quick=True)) < set(rows)


def test_subjects_are_loaded_by_name(subjects):
    assert load(f"{subjects}:small").call().shape == (1, 8)
    assert torch.equal(load(f"{subjects}:keywords").call(), torch.ones(1, 2))
    for name, error, message in (
        ("subjects", ValueError, "MODULE:FACTORY"),
        (f"{subjects}:absent", ValueError, "has no absent; it has small, keywords, broken"),
        (f"{subjects}:SUBJECTS", ValueError, "has no SUBJECTS"),
        (f"{subjects}:os", ValueError, "cannot be called; it has small"),
        ("nowhere.py:factory", ValueError, "there is no file nowhere.py"),
        (
            "nowhere_to_be_found.app:factory",
            ModuleNotFoundError,
            "no module nowhere_to_be_found is installed",
        ),
        (f"{subjects}:nothing", TypeError, "must return"),
        (f"{subjects}:broken", OSError, "no weights here"),
    ):
        with pytest.raises(error, match=message):
            load(name)


def test_a_file_with_the_name_of_another_module_is_told_so(subjects, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "queue.py").write_text("def factory(): return len, [1]")
    with pytest.raises(ValueError, match="has the name of a module that is there already"):
        load("folder/queue.py:factory")


def test_batches_leave_every_worker_its_share_of_what_is_in_flight(subjects, monkeypatch):
    made = []

    class Spied(torchgil.Batcher):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("torchgil.compare._services.Batcher", Spied)
    serving = start(Contender("threads", 2, batching=True), f"{subjects}:two_rows", in_flight=8)
    try:
        for future in [serving.submit() for _ in range(64)]:
            future.result(60)
    finally:
        serving.close()
    assert max(made[0].stats().batch_rows) == 8  # four requests of two rows
    assert serving.max_batch_size == 8


@pytest.mark.slow
@pytest.mark.parametrize("way", [PROCESSES, Contender("threads", 2)], ids=lambda way: way.kind)
def test_every_worker_has_answered_when_a_way_has_started(subjects, way):
    for _ in range(2):
        for answered in Path().glob("answered_*"):
            answered.unlink()
        serving = start(way, f"{subjects}:tells_who_answers", in_flight=2)
        try:
            assert len(list(Path().glob("answered_*"))) == 2
        finally:
            serving.close()


def test_an_answer_that_fails_leaves_no_worker_waiting_for_it(subjects):
    with pytest.raises(OSError, match="the second answer"):
        start(Contender("threads", 2), f"{subjects}:fails_where_others_wait", in_flight=2)


def test_a_view_moves_its_whole_storage_and_a_storage_moves_once(subjects):
    _, shared = moved_bytes(f"{subjects}:view")
    assert shared == 2 * 50 * 8 * 4
