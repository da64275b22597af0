"""When a run is to end before its steps are done: a signal, or its time."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any


class Stopping:
    """SIGTERM and Ctrl-C end a run after the step they arrive in, and so does a limit in minutes."""

    def __init__(self, time_limit: float | None) -> None:
        self.time_limit = time_limit
        self.signal: int | None = None
        self.began = time.monotonic()

    @property
    def asked(self) -> bool:
        """Whether this process is to stop."""
        late = self.time_limit is not None and time.monotonic() - self.began > 60 * self.time_limit
        return self.signal is not None or late

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals for the time of a `with` block; a second one acts as usual."""

        def ask(number: int, _frame: Any) -> None:
            self.signal = number
            signal.signal(number, before[number])

        before: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not in the main thread: signals are not ours to handle
            before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
