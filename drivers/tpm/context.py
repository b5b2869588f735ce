"""One opened TPM: ESAPI made when needed, swept on connect, thrown away after a failure, shut down cleanly at the end.

Here are the rules of using a TPM with three object and three session places over a line that may break: whatever is
loaded is flushed. What is done with the TPM must not come in; auth values and sessions are in `sessions`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from drivers.tpm import codec, public
from drivers.tpm.failures import RC_HANDLE, base, from_tpm, mapped
from drivers.tpm.tss import ESAPI, ESYS_TR, TSS2_Exception
from drivers.tpm.tunnel import TunnelTcti
from hal.call import Call
from hal.errors import DeviceError, DeviceGone, ProtocolViolation, TpmError, TpmReset
from hal.interfaces import TpmTransport
from hal.secret import Secret
from hal.types import EndorsementKey, Hierarchy

CLOSE_SECONDS: Final = 2.0
SWEPT: Final = (codec.TRANSIENT_OBJECTS, codec.LOADED_SESSIONS, codec.SAVED_SESSIONS)
STALE: Final = frozenset({codec.RC_INITIALIZE, 0x901, 0x902, 0x903, 0x905, 0x906})
"""The TPM was reset, or is full (CONTEXT_GAP, OBJECT_MEMORY, SESSION_MEMORY, SESSION_HANDLES, OBJECT_HANDLES):
connect anew, which starts and sweeps it."""
HANDLE_LIMIT: Final = 1024
"""No TPM has more handles of one kind; one that says so is not believed."""

WORTH_KEEPING: Final = 0.5
"""Seconds that making a primary key takes from which on its context is kept: saving and loading one moves some 2 kB."""

HIERARCHIES: Final = {
    Hierarchy.OWNER: ESYS_TR.OWNER,
    Hierarchy.ENDORSEMENT: ESYS_TR.ENDORSEMENT,
    Hierarchy.LOCKOUT: ESYS_TR.LOCKOUT,
}


class Tpm:
    """One TPM behind `transport`, for one thread. `use` first; all else within it."""

    def __init__(self, transport: TpmTransport) -> None:
        self._tcti = TunnelTcti(transport)
        self._esapi: ESAPI | None = None
        self._open: Counter[int] = Counter()
        self._persistent: dict[int, ESYS_TR] = {}
        """ESAPI's objects for persistent keys, by handle: it asks the TPM for each one anew, over a slow line maybe."""
        self._saved: dict[str, tuple[object, bytes]] = {}
        """Saved contexts of primary keys and their TPM2B_PUBLIC: see `kept`."""
        self._used = self._gone = self._confused = False
        self._boot: bytes | None = None
        """The TPM's resetCount and restartCount when ESAPI was made; None where it doesn't tell."""
        self.vouched: tuple[EndorsementKey, Secret] | None = None
        """The EK that ownership was used with in this visit, and the owner auth that held: see `sessions`."""
        self.endorsed: tuple[EndorsementKey, Secret] | None = None
        """The same for the endorsement auth; None while that is empty, or nobody has shown that he knows it."""

    # --- connection ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def use(self, call: Call, doing: str) -> Iterator[ESAPI]:
        """ESAPI for one operation within `call`. Errors come out as `hal.errors`; `doing` begins their message."""
        call.check()
        self._tcti.begin(call)
        try:
            yield self.connected()
        except TSS2_Exception as error:
            failure = self._tcti.failure
            if failure is not None:
                self._lose(failure)
                # ESAPI shows a bare code for it; the original says what happened and whether a retry makes sense.
                raise failure from None
            self.check_boot(doing)
            if not from_tpm(error.rc) or base(error.rc) in STALE:
                self._drop()
            raise mapped(error.rc, doing) from error
        except TpmReset:
            raise
        except TpmError:
            self.check_boot(doing)
            raise
        except DeviceError as error:
            self._lose(error)
            raise

    def check_boot(self, doing: str) -> None:
        """TpmReset when the TPM was reset since ESAPI was made, which is before anything that is loaded was loaded.

        Asked before a refusal is believed. A board that restarts behind a port that stays, and a link that sends again
        what wasn't answered: then the TPM refuses what it has forgotten, or takes a new object for the old one that had
        its handle, with any code at all.
        """
        if self._esapi is None:
            return
        try:
            boot = self._read_boot()
        except DeviceError as error:
            self._lose(error)
            raise
        if boot != self._boot:
            self._drop()
            raise TpmReset(f"{doing}: the TPM was reset meanwhile and has forgotten what was loaded")

    def close(self) -> None:
        """TPM2_Shutdown(CLEAR) if the TPM is still there, so that no power cut counts as a wrong try. Idempotent."""
        self._drop()
        used, self._used = self._used, False
        if not used or self._gone:
            return
        self._tcti.begin(Call.lasting(CLOSE_SECONDS))
        # The visit is over: a device that doesn't answer now has been reported by the step that noticed, or will be by
        # the next visit, whose lockout counter shows it.
        with contextlib.suppress(DeviceError):
            self._tcti.exchange(codec.shutdown())

    def settle(self) -> None:
        """TPM2_Shutdown(CLEAR) in mid-visit: after lockout auth was used, a power cut counts as a wrong try."""
        if self._tcti.failure is None:
            self._raw(codec.shutdown(), "TPM2_Shutdown")

    def forget(self) -> None:
        """After TPM2_Clear: objects, sessions and auths that were known are gone with it."""
        self._drop()
        self._saved.clear()
        self.vouched = self.endorsed = None

    def is_connected(self, esapi: ESAPI) -> bool:
        """Whether `esapi` is still the one in use: after a failure its objects are gone with it."""
        return esapi is self._esapi and self._tcti.failure is None and not self._confused

    def connected(self) -> ESAPI:
        if self._esapi is None:
            self._sweep()
            self._boot = self._read_boot()
            self._esapi = ESAPI(self._tcti)
            self._used, self._gone, self._confused = True, False, False
        return self._esapi

    def _lose(self, failure: BaseException) -> None:
        self._gone = isinstance(failure, DeviceGone)
        self._drop()

    def _read_boot(self) -> bytes | None:
        """None from a TPM that doesn't tell: it waits for its startup, or is in failure mode."""
        response = self._tcti.exchange(codec.read_clock())
        return codec.boot(response) if codec.response_code(response) == codec.RC_SUCCESS else None

    def _drop(self) -> None:
        """After a failure ESAPI only says "wrong order"; what it leaves in the TPM is swept by the next connection."""
        self._open.clear()
        self._persistent.clear()  # they end with ESAPI
        esapi, self._esapi = self._esapi, None
        if esapi is not None:
            esapi.close()

    def _sweep(self) -> None:
        """Flushes what an earlier user left loaded: three leaked objects are all that a TPM has room for."""
        first = self._tcti.exchange(
            codec.get_capability(codec.CAP_TPM_PROPERTIES, codec.Property.REVISION, 1)
        )
        if codec.response_code(first) == codec.RC_INITIALIZE:
            # Bare chips without platform firmware; elsewhere the firmware has done it before.
            code = codec.response_code(self._tcti.exchange(codec.startup()))
            if code not in (codec.RC_SUCCESS, codec.RC_INITIALIZE):
                raise mapped(code, "TPM2_Startup")
        for kind in SWEPT:
            # Policy sessions are listed among the loaded ones, with handles of another range: flush all that is told.
            command = codec.get_capability(codec.CAP_HANDLES, kind, codec.HANDLES_PER_ANSWER)
            _, left = codec.handles(self._raw(command, "reading what is loaded"))
            for handle in left:
                code = codec.response_code(self._tcti.exchange(codec.flush(handle)))
                if code and base(code) != RC_HANDLE:
                    raise mapped(code, f"flushing 0x{handle:08x}")

    def _raw(self, command: bytes, doing: str) -> bytes:
        response = self._tcti.exchange(command)
        code = codec.response_code(response)
        if code != codec.RC_SUCCESS:
            raise mapped(code, doing)
        return response

    # --- what is there ------------------------------------------------------------------------------------------

    def handles(self, first: int, last: int) -> list[int]:
        """The handles in that range (of one kind), in order."""
        found: list[int] = []
        start, more = first, True
        while more and start <= last and len(found) < HANDLE_LIMIT:
            command = codec.get_capability(codec.CAP_HANDLES, start, codec.HANDLES_PER_ANSWER)
            more, got = codec.handles(self._raw(command, "reading the handles"))
            if got != sorted(set(got)) or (got and got[0] < start) or (more and not got):
                raise ProtocolViolation("the TPM's handles are not in order")
            found += [handle for handle in got if handle <= last]
            start = got[-1] + 1 if got else last + 1
        return found

    def properties(self, first: int, last: int) -> dict[int, int]:
        """TPM_PT values from `first` to `last`; those that the TPM doesn't have are missing."""
        found: dict[int, int] = {}
        start, more = first, True
        while more and start <= last:
            command = codec.get_capability(codec.CAP_TPM_PROPERTIES, start, last - start + 1)
            more, got = codec.properties(self._raw(command, "reading the properties"))
            if more and (not got or max(got) < start):
                raise ProtocolViolation("the TPM's properties are not in order")
            found |= got
            start = max(got, default=last) + 1
        return found

    def property(self, wanted: codec.Property) -> int:
        value = self.properties(wanted, wanted).get(wanted)
        if value is None:
            raise TpmError(f"the TPM doesn't tell its property {wanted.name}")
        return value

    def read_public(self, handle: int) -> bytes | None:
        """TPM2B_PUBLIC of a persistent object as the TPM has it now, None when there is none."""
        response = self._tcti.exchange(codec.read_public(handle))
        code = codec.response_code(response)
        if code == codec.RC_SUCCESS:
            return public.octets(public.parsed(codec.public(response)))
        if base(code) == RC_HANDLE:
            return None
        raise mapped(code, f"reading the key at 0x{handle:08x}")

    def is_persistent(self, handle: int) -> bool:
        """Whether there is an object at `handle`."""
        return handle in self._persistent or handle in self.handles(handle, handle)

    # --- resources of ESAPI -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Notes an error of ESAPI's own: it answers "wrong order" from then on, which must not hide that error."""
        try:
            yield
        except TSS2_Exception as error:
            self._confused = self._confused or not from_tpm(error.rc)
            raise

    @contextlib.contextmanager
    def persistent(self, handle: int) -> Iterator[ESYS_TR]:
        """ESAPI's object for a persistent key or an NV index.

        A key's is kept until it is evicted. An NV index's is counted: asked twice for one handle ESAPI gives the same
        object, and one close would take it from both.
        """
        esapi = self.connected()
        if handle >= codec.PERSISTENT_OBJECTS:
            if handle not in self._persistent:
                self._persistent[handle] = esapi.tr_from_tpmpublic(handle)
            with self._watched():
                yield self._persistent[handle]
            return
        item = esapi.tr_from_tpmpublic(handle)
        self._open[int(item)] += 1
        try:
            with self._watched():
                yield item
        finally:
            self._open[int(item)] -= 1
            if self.is_connected(esapi) and self._open[int(item)] <= 0:
                esapi.tr_close(item)

    def evict(self, handle: int) -> None:
        """Removes the persistent key at `handle`, with an empty owner auth."""
        with self.persistent(handle) as item:
            self.connected().evict_control(ESYS_TR.OWNER, item, handle)  # ESAPI closes its object with it
            del self._persistent[handle]

    @contextlib.contextmanager
    def flushing(self, item: ESYS_TR) -> Iterator[ESYS_TR]:
        """`item` (a transient object or a session), flushed at the end unless the connection broke meanwhile."""
        esapi = self.connected()
        try:
            with self._watched():
                yield item
        finally:
            if self.is_connected(esapi):
                esapi.flush_context(item)

    @contextlib.contextmanager
    def kept(
        self, name: str, make: Callable[[], AbstractContextManager[tuple[ESYS_TR, bytes]]]
    ) -> Iterator[tuple[ESYS_TR, bytes]]:
        """What `make` makes, a transient primary key and its TPM2B_PUBLIC, for use under `name` several times a visit.

        It has no place to stay in (three are all that a TPM has room for). When making it was slow its context,
        encrypted by the TPM, is kept here and loaded again, until the TPM is reset.
        """
        saved = self._saved.get(name)
        loaded = self._load(name, saved[0]) if saved is not None else None
        if saved is not None and loaded is not None:
            with self.flushing(loaded):
                yield loaded, saved[1]
            return
        began = time.monotonic()
        with make() as (item, area):
            if time.monotonic() - began >= WORTH_KEEPING:
                self._saved[name] = self.connected().context_save(item), area
            yield item, area

    def _load(self, name: str, context: object) -> ESYS_TR | None:
        try:
            return self.connected().context_load(context)
        except TSS2_Exception as error:
            if not from_tpm(error.rc) or base(error.rc) in STALE:
                raise
            del self._saved[name]  # of before a reset: it is made again
            return None

    @contextlib.contextmanager
    def primary(
        self, hierarchy: Hierarchy, template: object, session: ESYS_TR = ESYS_TR.PASSWORD
    ) -> Iterator[tuple[ESYS_TR, bytes]]:
        """A transient primary key and its TPM2B_PUBLIC. Takes 10 s and more for RSA on real chips."""
        item, area, _, _, _ = self.connected().create_primary(
            None, template, primary_handle=HIERARCHIES[hierarchy], session1=session
        )
        with self.flushing(item):
            yield item, public.octets(area)
