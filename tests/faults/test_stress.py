"""A short run of `make stress`, and that it can fail."""

from __future__ import annotations

import pytest

from ..conftest import run_in_child


@pytest.mark.slow
def test_all_is_accounted_for_and_as_it_was():
    child = run_in_child(
        """
        import os
        os.environ.setdefault("TORCHGIL_STRESS_S", "8")
        from tests.faults import stress
        stress.main()
        """,
        timeout=250,
        whole_end=True,
    )
    assert "threads, files and settings as before" in child.stdout


def test_a_future_that_is_lost_is_found():
    child = run_in_child(
        """
        import os
        os.environ["TORCHGIL_STRESS_S"] = "4"
        from tests.faults import stress
        class Loses(stress.Stress):
            def ended(self, future):
                if self.endings or hasattr(self, "lost"):
                    super().ended(future)
                self.lost = True
        stress.Stress = Loses
        stress.main()
        """,
        timeout=60,
        check=False,
        whole_end=True,
    )
    assert child.exit_code == 1
    assert "AssertionError: (Counter(" in child.stderr
