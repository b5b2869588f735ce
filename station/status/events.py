"""Events for those who follow: as lines, and one thread that waits for new ones while anybody follows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from hal.errors import HallmarkError
from station.status.view import Records

WAIT_SECONDS: Final = 0.5
"""How long a stop may have to wait for the store's answer."""


def lines(records: Records, since: int, limit: int) -> tuple[bytes, int, int]:
    """Events behind `since` as NDJSON, the last one's `seq` (or `since`), and how many they are."""
    events = records.events(since, limit)
    text = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    return text, events[-1].seq if events else since, len(events)


def heartbeat(since: int) -> bytes:
    """A line that says that the station lives, and that there has been nothing since."""
    return msgspec.json.encode({"seq": since, "at": time.time(), "kind": "heartbeat"}) + b"\n"


class Watch:
    """Calls `arrived` from a thread of its own whenever there may be new events, while `wanted` is set."""

    def __init__(self, records: Records, arrived: Callable[[], object]) -> None:
        self._records, self._arrived = records, arrived
        self._stop = threading.Event()
        self.wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience: float) -> None:
        self._stop.set()
        self.wanted.set()
        self._thread.join(patience)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while self.wanted.wait() and not self._stop.is_set():
            try:
                last = self._records.last_event()
                self._arrived()  # what came since the followers last looked
                while self.wanted.is_set() and not self._stop.is_set():
                    if self._records.wait_event(last, WAIT_SECONDS):
                        last = self._records.last_event()
                        self._arrived()
            except HallmarkError as error:
                structlog.get_logger().warning("events can't be followed for now", error=error)
                self._stop.wait(WAIT_SECONDS)
