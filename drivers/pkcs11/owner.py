"""The one thread that may call into a PKCS#11 module, and how others hand it work.

python-pkcs11 initialises a module without OS locking and lets go of the GIL in each call: a second thread in the module
ends in SIGSEGV within seconds (measured: 8 of 8 runs). So the module, its sessions and its handles live in this thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from hal.call import Call
from hal.errors import TokenError

T = TypeVar("T")

_owned: Final[set[str]] = set()
_owned_lock: Final = threading.Lock()


@dataclass(slots=True)
class _Job:
    """`taken` decides, once, between the thread that starts the job and the caller that gives it up."""

    work: Callable[[], Any]
    done_fd: int
    taken: threading.Lock = field(default_factory=threading.Lock)
    result: Any = None
    error: BaseException | None = None


class ModuleThread:
    """Runs jobs one after the other, in the order in which they came."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def run(self, call: Call, work: Callable[[], T]) -> T:
        """`work()`'s result, or what it raised.

        Raises what stops the call (DeadlineExceeded, the cancel's reason) only while the job waits for its turn. Once
        it runs this returns when it is over and not before: a C call can't be interrupted, and nobody may think it
        stopped. A caller that can't wait so long has to give up the process.
        """
        call.check()
        job = _Job(work, os.eventfd(0, os.EFD_CLOEXEC))
        try:
            self._jobs.put(job)
            try:
                call.wait_readable(job.done_fd)
            except BaseException:
                if job.taken.acquire(blocking=False):
                    raise
            os.eventfd_read(job.done_fd)
        finally:
            # A job that was given up keeps no descriptor: the thread sees `taken` and never touches it.
            os.close(job.done_fd)
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def stop(self) -> None:
        """Ends the thread after the jobs that wait already."""
        self._jobs.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.taken.acquire(blocking=False):
                continue
            try:
                job.result = job.work()
            except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                job.error = error
            os.eventfd_write(job.done_fd, 1)


@contextlib.contextmanager
def sole_owner(module: str) -> Iterator[ModuleThread]:
    """The thread that owns `module` in this process; TokenError when there is one already."""
    path = os.path.realpath(module)
    with _owned_lock:
        if path in _owned:
            message = f"the PKCS#11 module {path} is open in this process already"
            raise TokenError(message)
        _owned.add(path)
    try:
        thread = ModuleThread("pkcs11")
        try:
            yield thread
        finally:
            thread.stop()
    finally:
        with _owned_lock:
            _owned.discard(path)
