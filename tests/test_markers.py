"""The markers say what a test is: seen in the test itself, in a function that it calls, or in a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import run_in_child
from tests.support.markers import TIMING

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", TIMING)
def test_what_is_marked_by_its_path_is_there(path):
    assert (ROOT / path).exists()


def test_a_test_without_a_process_is_a_unit(request):
    assert [mark.name for mark in request.node.iter_markers()] == ["unit"]


def in_a_child():
    def nested():
        return run_in_child("pass")

    return nested()


def test_a_process_is_found_in_a_function_that_is_called(request):
    in_a_child()
    assert request.node.get_closest_marker("process")
    assert not request.node.get_closest_marker("unit")


@pytest.fixture
def child():
    return in_a_child()


def test_a_process_is_found_in_a_fixture(request, child):
    assert request.node.get_closest_marker("process")
