"""Manufactures software TPMs and runs them: one `swtpm` child per TPM, spoken to over a socket pair.

Bench equipment: an EK certificate made here is signed by a CA that anybody with the folder can use. What TPM commands
mean, and any choice of EKs or keys, must not come in.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from hal.call import Call
from hal.errors import ConfigError, DeviceGone, DeviceRefused, ProtocolViolation, quote

STATE_FILE: Final = "tpm2-00.permall"
"""Where swtpm keeps a TPM's persistent state (swtpm(8)): there is a TPM in a folder when this file is in it."""

MAX_MESSAGE: Final = 4096
"""Octets of a TPM command or response at most (TPM 2.0 Part 2, TPM_PT_MAX_COMMAND_SIZE of libtpms)."""

HEADER_LENGTH: Final = 10
"""Tag (2), size (4, big-endian, with the header), command or response code (4): TPM 2.0 Part 1, 18."""

SHUTDOWN_CLEAR: Final = bytes.fromhex("8001 0000000c 00000145 0000")
"""TPM2_Shutdown(TPM_SU_CLEAR): TPM 2.0 Part 3, 9.4."""

CLOSE_SECONDS: Final = 5.0
MANUFACTURE_SECONDS: Final = 60.0

_OPTIONS: Final = ("--tpm2", "--tpmstate", "dir=.", "--flags", "not-need-init,startup-clear")

_LOCALCA_CONF: Final = """\
statedir = {ca}
signingkey = {ca}/signkey.pem
issuercert = {ca}/issuercert.pem
certserial = {ca}/certserial
"""
_LOCALCA_OPTIONS: Final = """\
--platform-manufacturer Hallmark
--platform-version 1.0
--platform-model bench
"""
_SETUP_CONF: Final = """\
create_certs_tool = {tool}
create_certs_tool_config = {conf}/localca.conf
create_certs_tool_options = {conf}/localca.options
active_pcr_banks = sha256
"""


def manufacture(state: Path, ek_ca: Path, call: Call | None = None) -> None:
    """Makes a TPM in folder `state`: EKs at 0x81010001 (RSA-2048) and 0x81010016 (P-384), their certificates in NV.

    `ek_ca` is the bench's EK CA, made on first use: `issuercert.pem` and `swtpm-localca-rootca-cert.pem` are what a
    trust store needs. Returns at once when `state` holds a TPM already; a crash leaves no half-made one.
    ConfigError when swtpm's tools are missing or refuse.
    """
    state, ek_ca = state.absolute(), ek_ca.absolute()
    if (state / STATE_FILE).exists():
        return
    setup, localca = _program("swtpm_setup"), _program("swtpm_localca")
    ek_ca.mkdir(parents=True, exist_ok=True, mode=0o700)
    state.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, so that the rename that makes it a TPM stays on one file system.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=state.parent) as scratch:
        conf, made = Path(scratch) / "conf", Path(scratch) / "state"
        conf.mkdir()
        made.mkdir(mode=0o700)
        (conf / "localca.conf").write_text(_LOCALCA_CONF.format(ca=ek_ca))
        (conf / "localca.options").write_text(_LOCALCA_OPTIONS)
        (conf / "setup.conf").write_text(_SETUP_CONF.format(tool=localca, conf=conf))
        # Relative to its working directory: swtpm's options would split an absolute path at a comma.
        arguments = [setup, "--tpm2", "--tpmstate", ".", "--create-ek-cert", "--lock-nvram"]
        seconds = min(MANUFACTURE_SECONDS, (call or Call()).remaining())
        try:
            result = subprocess.run(
                [*arguments, "--config", str(conf / "setup.conf")],
                cwd=made,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"swtpm_setup did not end within {seconds:.0f} s") from error
        if result.returncode or not (made / STATE_FILE).exists():
            raise ConfigError(f"swtpm_setup made no TPM: {quote(result.stdout[-300:], 400)}")
        state.mkdir(exist_ok=True, mode=0o700)
        for path in made.iterdir():
            if path.name != STATE_FILE:
                path.rename(state / path.name)
        (made / STATE_FILE).rename(state / STATE_FILE)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"{name} is not installed", hint="apt-get install swtpm swtpm-tools gnutls-bin")
    return found


class SwtpmProcess:
    """A manufactured TPM, powered on while the context lasts. Offers `hal.interfaces.TpmTransport`; not thread-safe.

    The child reads a socket pair and ends at its end of file, so it also ends when this process is killed: no process
    stays behind, and no thread has to outlive it (PR_SET_PDEATHSIG would fire when the *thread* that started it ends).
    """

    def __init__(self, state: Path) -> None:
        self._state = state.absolute()
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._errors: IO[bytes] | None = None
        self._input = bytearray()
        self._owed = 0
        """Answers to commands that were given up; they come first and are dropped."""

    def __enter__(self) -> Self:
        self.power_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.power_off()

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def power_on(self) -> None:
        """Starts the TPM and has it started up with TPM_SU_CLEAR, as platform firmware does."""
        if self._child is not None:
            return
        if not (self._state / STATE_FILE).exists():
            raise ConfigError(f"there is no TPM in {self._state}")
        program = _program("swtpm")
        ours, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by power_cut
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [program, "socket", *_OPTIONS, "--fd", str(theirs.fileno())],
                    cwd=self._state,
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                ours.close()
                self._errors.close()
                raise
        ours.setblocking(False)
        self._socket = ours
        self._input.clear()
        self._owed = 0

    def power_off(self) -> None:
        """TPM2_Shutdown(CLEAR), then off. Idempotent."""
        if self._child is None:
            return
        # A TPM that is dead already can't be told to shut down; that it is off is what was asked for.
        with contextlib.suppress(DeviceGone, ProtocolViolation, TimeoutError):
            self.transmit(Call.lasting(CLOSE_SECONDS), SHUTDOWN_CLEAR)
        if self._socket is not None:
            self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(CLOSE_SECONDS)
        self.power_cut()

    def power_cut(self) -> None:
        """Off without a word, as when the plug is pulled. Idempotent."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def transmit(self, call: Call, command: bytes) -> bytes:
        """`command` to its response. After a time-out the answer that is still owed is dropped by the next call."""
        if not HEADER_LENGTH <= len(command) <= MAX_MESSAGE:
            raise DeviceRefused(f"a TPM command of {len(command)} octets")
        sock = self._socket
        if sock is None:
            raise DeviceGone("the software TPM is off")
        try:
            while self._owed:
                self._receive(call, sock)
                self._owed -= 1
            unsent = memoryview(command)
            while unsent:
                call.wait_writable(sock.fileno())
                sent = sock.send(unsent)
                # From the first octet on there will be an answer, whether or not anybody waits for it.
                self._owed = 1
                unsent = unsent[sent:]
            response = self._receive(call, sock)
            self._owed = 0
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise self._gone() from error
        return response

    def _receive(self, call: Call, sock: socket.socket) -> bytes:
        """One whole response. What of it has arrived stays in `_input` when the call is stopped."""
        while True:
            if len(self._input) >= HEADER_LENGTH:
                size = int.from_bytes(self._input[2:6], "big")
                if not HEADER_LENGTH <= size <= MAX_MESSAGE:
                    raise ProtocolViolation(f"a TPM response that says it has {size} octets")
                if len(self._input) >= size:
                    response = bytes(self._input[:size])
                    del self._input[:size]
                    return response
            call.wait_readable(sock.fileno())
            received = sock.recv(MAX_MESSAGE)
            if not received:
                raise self._gone()
            self._input += received

    def _gone(self) -> DeviceGone:
        said = ""
        if self._errors is not None:
            self._errors.seek(0)
            said = self._errors.read(400).decode("ascii", "replace").strip()
        return DeviceGone("the software TPM ended" + (f": {quote(said, 300)}" if said else ""))
