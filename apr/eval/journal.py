"""Traces in a file as they end, so that a process that is killed has not worked in vain."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from apr.errors import StorageError
from apr.files import writing
from apr.trace import Trace, line_of

FLUSH_EVERY = 16
"""Traces that a kill may lose at most."""
FLUSH_SECONDS = 2.0


class Journal:
    """Appends traces to a file, some at a time; the file appears with the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_kept = 0
        self._lines: list[bytes] = []
        self._flushed = time.monotonic()

    def append(self, trace: Trace) -> None:
        """Raises StorageError as ``flush`` does."""
        self._lines.append(line_of(trace))
        if len(self._lines) >= FLUSH_EVERY or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            StorageError: the disk is full; no part of these traces stays in the file.
        """
        lines, self._lines, self._flushed = self._lines, [], time.monotonic()
        if not lines:
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as f:
                    f.writelines(lines)
        except StorageError:
            with suppress(OSError):
                os.truncate(self.path, size)
                if not size:
                    self.path.unlink()
            raise
        self.num_kept += len(lines)
