"""Our own TCTI: it hands ESAPI's commands to a `TpmTransport` and brings back the answers, or the real error.

It also waits when the TPM asks for time. What the commands mean must not come in, nor which transport it is.
"""

from __future__ import annotations

from typing import Final

from drivers.tpm import codec
from drivers.tpm.failures import NOT_STARTED, base
from drivers.tpm.tss import PyTCTI, TSS2_Exception
from hal.call import Call
from hal.errors import ProtocolViolation
from hal.interfaces import TpmTransport

FIRST_PAUSE_SECONDS: Final = 0.01
LONGEST_PAUSE_SECONDS: Final = 0.5
RETRIES: Final = 40
"""Some 16 s of waiting: a TPM that has work of its own (TPM_RC_RETRY, self-test) is ready in less."""

_IO_ERROR: Final = 0x000A_000A
"""TSS2_TCTI_RC_IO_ERROR."""


class TunnelTcti(PyTCTI):
    """One TPM's TCTI. `begin` before each use of the ESAPI on top; after a failure make a new ESAPI.

    `failure` is what really went wrong: ESAPI shows a bare code only, and can't be used any more after it.
    """

    def __init__(self, transport: TpmTransport) -> None:
        super().__init__(max_size=codec.MAX_MESSAGE)
        self._transport = transport
        self._command: bytes | None = None
        self.call = Call()
        self.failure: BaseException | None = None

    def begin(self, call: Call) -> None:
        """From now on commands belong to `call`."""
        self.call, self.failure = call, None

    def exchange(self, command: bytes) -> bytes:
        """One command to its answer within `call`. A TPM that wants it again later gets it again, after a pause."""
        pause = FIRST_PAUSE_SECONDS
        for _ in range(RETRIES):
            response = bytes(self._transport.transmit(self.call, command))
            if base(codec.response_code(response)) not in NOT_STARTED:
                return response
            # ESAPI itself would ask five times without a pause and then give up.
            self.call.pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise ProtocolViolation(f"the TPM did not begin a command that it was asked for {RETRIES} times")

    def do_transmit(self, command: bytes) -> None:
        self._command = command

    def do_receive(self, timeout: int) -> bytes:
        """The answer. ESAPI always passes -1 as timeout: the deadline is `call`'s, which the transport holds."""
        del timeout
        command, self._command = self._command, None
        try:
            if command is None:
                raise ProtocolViolation("an answer was asked for without a command")
            return self.exchange(command)
        except (
            BaseException
        ) as error:  # what isn't an Exception would be dropped, and garbage read as the answer
            self.failure = error
            raise TSS2_Exception(_IO_ERROR) from error
