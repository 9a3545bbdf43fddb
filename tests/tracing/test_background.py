"""What a watchdog and a monitor have in common: their start and their end."""

from __future__ import annotations

import pytest

from tests.conftest import run_in_child


@pytest.mark.parametrize("kind", ["Watchdog", "GilMonitor"])
def test_cannot_be_started_at_interpreter_exit(kind: str) -> None:
    child = run_in_child(
        f"""
        import atexit
        def late():
            try:
                torchgil.{kind}().start()
            except RuntimeError as error:
                print(error)
        atexit.register(late)  # handlers run in reverse order: after its own
        import torchgil
        torchgil.{kind}
        """
    )
    assert f"a {kind} cannot be started at interpreter exit" in child.stdout
