"""What else runs on the machine: it takes cores away and makes every figure worse."""

from __future__ import annotations

import os
import time

__all__ = ["OtherLoad"]


class OtherLoad:
    """From its making on, the cores that other processes, and the host, took."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._others_at_start = self._others()

    def cores(self) -> float | None:
        """Average number of cores others used since; None where psutil is missing."""
        if self._others_at_start is None:
            return None
        others = self._others()
        assert others is not None
        return max(0.0, (others - self._others_at_start) / (time.monotonic() - self._began))

    @staticmethod
    def _others() -> float | None:
        """CPU seconds of everybody else so far, as far as it is counted."""
        try:
            import psutil
        except ImportError:
            return None
        times = psutil.cpu_times()
        # A guest's time is part of user and nice already; iowait is idle time.
        busy = sum(
            value
            for name, value in times._asdict().items()
            if name not in ("idle", "iowait", "guest", "guest_nice")
        )
        return float(busy - sum(os.times()[:2]))
