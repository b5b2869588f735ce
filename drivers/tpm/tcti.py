"""A `TpmTransport` over any TCTI of tpm2-tss: `device:/dev/tpmrm0`, `swtpm:path=...`, `mssim:...`, `cmd:...`.

One transport for all of them, so that deadline, cancel and late answers are handled once; ESAPI, which would block in
C, is not told of the TCTI. What the commands mean must not come in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from drivers.tpm import codec
from drivers.tpm.tss import TCTILdr, TSS2_Exception
from hal.call import Call
from hal.errors import ConfigError, DeviceBusy, DeviceGone, quote

BENCH_TCTIS: Final = frozenset({"swtpm", "mssim", "libtpms", "pcap"})
"""TCTIs that lead to a software TPM or over a network. `cmd` may well lead to a chip: a TPM says itself what it is."""


def is_bench_only(tcti: str) -> bool:
    """Whether `tcti` (name[:configuration]) is fit for bench mode only."""
    return tcti.partition(":")[0].removeprefix("libtss2-tcti-").removesuffix(".so.0") in BENCH_TCTIS


FINALIZE_ASKS: Final = frozenset({"swtpm", "mssim"})
"""TCTIs whose end is a conversation on a control channel, in C and without a deadline."""


class TctiTransport:
    """Opened with the first command. The answer to a command that was given up is dropped when the next one is sent."""

    def __init__(self, tcti: str) -> None:
        name, _, configuration = tcti.partition(":")
        if not name:
            raise ConfigError("a TCTI is named, as in device:/dev/tpmrm0", key="tcti")
        self._name, self._configuration = name, configuration or None
        self._tcti: TCTILdr | None = None
        self._owed = False

    def transmit(self, call: Call, command: bytes) -> bytes:
        """`command` to its response. DeviceBusy when the TCTI can't be opened, DeviceGone when it fails later.

        Deadline and cancel hold for TCTIs that tell what to poll (device, tabrmd); others (swtpm, mssim,
        cmd) block in C as long as the TPM takes, and the station gives their process up.
        """
        call.check()
        tcti = self._opened()
        try:
            if self._owed:
                self._receive(call, tcti)
            tcti.transmit(command)
            self._owed = True
            return self._receive(call, tcti)
        except TSS2_Exception as error:
            self._owed = False
            self.close()
            raise DeviceGone(f"TCTI {quote(self._name)} failed: {quote(str(error))}") from error

    def close(self) -> None:
        """Idempotent."""
        tcti, self._tcti = self._tcti, None
        owed, self._owed = self._owed, False
        # A TPM that hasn't answered would not answer this either: such a connection ends with its process.
        if tcti is not None and not (owed and self._name in FINALIZE_ASKS):
            tcti.close()

    def _receive(self, call: Call, tcti: TCTILdr) -> bytes:
        self._wait(call, tcti)
        response = bytes(tcti.receive(codec.MAX_MESSAGE))
        self._owed = False
        return response

    def _opened(self) -> TCTILdr:
        if self._tcti is None:
            try:
                self._tcti = TCTILdr(self._name, self._configuration)
            except TSS2_Exception as error:
                raise DeviceBusy(
                    f"TCTI {quote(self._name)} can't be opened: {quote(str(error))}",
                    hint="Check that the TPM's device is there and free, and that the station's user may open it.",
                ) from error
        return self._tcti

    @staticmethod
    def _wait(call: Call, tcti: TCTILdr) -> None:
        try:
            handles = tcti.get_poll_handles()
        except (TSS2_Exception, NotImplementedError):
            return  # This TCTI has nothing to poll: receive() waits as long as the TPM takes.
        for handle in handles:
            call.wait_readable(handle.fd)


@contextlib.contextmanager
def opened(tcti: str) -> Iterator[TctiTransport]:
    transport = TctiTransport(tcti)
    try:
        yield transport
    finally:
        transport.close()
