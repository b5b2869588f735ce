"""Has the token destroy the keys that wrapped copies for resume, once nothing needs them: soon, and until it is done.

What is spent is the store's to say, and is durable before the token is asked; so a crash or a token that was pulled
only delays it.
"""

from __future__ import annotations

import threading
from typing import Final

import structlog

from hal.errors import HallmarkError
from station.signer_client import SignerClient
from station.store import Store

ROUND: Final = 1.0
"""Seconds between two looks while the store changes."""
LONGEST: Final = 60.0
"""Seconds between two looks while nothing changes: a day may have ended."""
PATIENCE: Final = 15.0
"""Seconds until a token that could not destroy a key is asked again."""


class KeyKeeper:
    """`start`, `stop`; `tidy` is one look."""

    def __init__(self, store: Store, signer: SignerClient) -> None:
        self._store, self._signer = store, signer
        self._stop = threading.Event()
        self._log = structlog.get_logger()
        self._thread = threading.Thread(target=self._run, name="key-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._store.wake()
        self._thread.join()

    def tidy(self) -> None:
        """Destroys what is spent. Raises what keeps it from that; all that was done before stays done."""
        for key in self._store.retire_wrap_keys():
            self._signer.destroy_wrap_key(key)
            self._store.wrap_key_destroyed(key)

    def _run(self) -> None:
        told = ""
        while not self._stop.is_set():
            seen, pause = self._store.changes(), ROUND
            try:
                self.tidy()
                told = ""
            except HallmarkError as error:
                pause = PATIENCE
                if str(error) != told:
                    self._log.warning("a spent key is still in the token", code=error.code, reason=str(error))
                told = str(error)
            if not self._stop.wait(pause):
                self._store.wait_change(seen, LONGEST)
