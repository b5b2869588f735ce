"""The board's TPM: a swtpm child that has power as long as the firmware runs, manufactured with its own EK certificate.

TPM commands pass through unread; what they mean, and anything of the station's TPM driver, must not come in.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import fcntl
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from drivers.emulated.board.power import Power
from hal.errors import ConfigError, DeviceGone, quote

STATE_FILE: Final = "tpm2-00.permall"
"""swtpm's persistent state (swtpm(8)); a folder holds a TPM when this file is in it."""
SCRATCH: Final = ".making-"
"""Begins the names of folders that only a killed start leaves beside the TPM."""
_CA_CERTIFICATE: Final = "issuercert.pem"
HEADER_LENGTH: Final = 10
MESSAGE_LIMIT: Final = 4096
"""TPM_PT_MAX_COMMAND_SIZE and TPM_PT_MAX_RESPONSE_SIZE of libtpms."""
SHUTDOWN_CLEAR: Final = bytes.fromhex("8001 0000000c 00000145 0000")
"""TPM2_Shutdown(TPM_SU_CLEAR): TPM 2.0 Part 3, 9.4."""
END_SECONDS: Final = 5.0
MANUFACTURE_SECONDS: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class EkCertificate(enum.StrEnum):
    """What the maker of the TPM put into its NV."""

    VENDOR = "vendor"
    """Certificates by the CA that the bench's boards share."""
    FOREIGN = "foreign"
    """Certificates by a CA of this board alone, which is in nobody's trust store."""
    NONE = "none"


def die_with_parent() -> None:
    """For a child, before it becomes another program: SIGKILL when its parent's thread ends (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def manufacture(state: Path, ek_ca: Path, certificate: EkCertificate) -> None:
    """Makes a TPM in `state` with EKs at 0x81010001 (RSA-2048) and 0x81010016 (P-384), unless there is one.

    `ek_ca` is made when it is not there; `swtpm-localca-rootca-cert.pem` in it is the root, `issuercert.pem` the one
    that signs. Boards may share it, several at once. A crash leaves neither half a TPM nor half a CA.
    ConfigError when swtpm's tools are missing or refuse.
    """
    state, ek_ca = state.absolute(), ek_ca.absolute()
    if (state / STATE_FILE).exists():
        return
    ek_ca.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Beside its final place, so that the rename that makes it a TPM stays on one file system.
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=state.parent) as scratch:
        made, new_ca = Path(scratch, "state"), Path(scratch, "ek-ca")
        made.mkdir(mode=0o700)
        with _locked(ek_ca / ".boards.lock") as unlock:
            if certificate is EkCertificate.NONE or (ek_ca / _CA_CERTIFICATE).exists():
                unlock()  # swtpm_localca has a lock of its own, for the serial number
                _set_up(made, _configure(Path(scratch), ek_ca), certificate)
            else:
                new_ca.mkdir(mode=0o700)
                _set_up(made, _configure(Path(scratch), new_ca), certificate)
                # The certificate last: it is what makes the folder a CA.
                for file in sorted(new_ca.iterdir(), key=lambda path: path.name == _CA_CERTIFICATE):
                    shutil.move(file, ek_ca / file.name)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(state)
        made.rename(state)


def _set_up(state: Path, config: Path, certificate: EkCertificate) -> None:
    wanted = "--createek" if certificate is EkCertificate.NONE else "--create-ek-cert"
    # Relative to its working directory: swtpm would take an absolute path apart at a comma.
    options = ["--tpm2", "--tpmstate", ".", wanted, "--lock-nvram", "--config", str(config)]
    _run([_program("swtpm_setup"), *options], state)
    if not (state / STATE_FILE).exists():
        raise ConfigError("swtpm_setup said nothing, but made no TPM")


def _configure(folder: Path, ek_ca: Path) -> Path:
    """swtpm_setup's configuration, all of it in `folder` and `ek_ca`: neither /etc nor a home folder is looked at."""
    localca, options, setup = folder / "localca.conf", folder / "localca.options", folder / "setup.conf"
    localca.write_text(
        f"statedir = {ek_ca}\nsigningkey = {ek_ca}/signkey.pem\n"
        f"issuercert = {ek_ca}/issuercert.pem\ncertserial = {ek_ca}/certserial\n"
    )
    options.write_text(
        "--platform-manufacturer Hallmark\n--platform-version 1.0\n--platform-model emulated\n"
    )
    setup.write_text(
        f"create_certs_tool = {_program('swtpm_localca')}\ncreate_certs_tool_config = {localca}\n"
        f"create_certs_tool_options = {options}\nactive_pcr_banks = sha256\n"
    )
    return setup


def _run(arguments: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            arguments,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MANUFACTURE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"swtpm_setup did not end within {MANUFACTURE_SECONDS:.0f} s") from error
    if done.returncode:
        said = (done.stdout + done.stderr)[-300:].decode("utf-8", "replace")
        raise ConfigError(f"swtpm_setup made no TPM: {quote(said, 400)}")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"{name} is not installed", hint="apt-get install swtpm swtpm-tools")
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Callable[[], None]]:
    """Gives what unlocks it earlier than the end of the block."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


class Tpm:
    """A TPM with power from here until `shut_down`, or until this process ends in any way. For one thread."""

    def __init__(self, state: Path, power: Power, keep: tuple[int, ...] = ()) -> None:
        """Starts it, with TPM2_Startup(CLEAR) as firmware does after reset. The child keeps descriptors `keep` open."""
        self._power = power
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child writes to it
        self._socket, theirs = socket.socketpair()
        options = ["--tpm2", "--tpmstate", "dir=.", "--flags", "not-need-init,startup-clear"]
        with theirs:
            self._child = subprocess.Popen(
                [_program("swtpm"), "socket", *options, "--fd", str(theirs.fileno())],
                cwd=state,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(), *keep),
                # The end of the socket would end it too, but only after the command it is at.
                preexec_fn=die_with_parent,  # noqa: PLW1509 - the firmware has one thread
            )

    def transmit(self, command: bytes) -> bytes:
        """One whole command to its whole response. DeviceGone when the TPM has ended."""
        self._power.point()
        began = time.monotonic_ns()
        response = self._exchange(command)
        self._power.used_tpm(time.monotonic_ns() - began)
        self._power.point()
        return response

    def shut_down(self) -> None:
        """TPM2_Shutdown(CLEAR), then off: nothing counts as a dictionary attack, and the state is free at once."""
        with contextlib.suppress(DeviceGone):
            self._exchange(SHUTDOWN_CLEAR)
        self._socket.close()
        try:
            self._child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()

    def _exchange(self, command: bytes) -> bytes:
        try:
            self._socket.sendall(command)
            head = self._receive(HEADER_LENGTH)
            size = int.from_bytes(head[2:6], "big")
            if not HEADER_LENGTH <= size <= MESSAGE_LIMIT:
                raise DeviceGone(f"swtpm gave a response of {size} octets")
            return head + self._receive(size - HEADER_LENGTH)
        except OSError as error:
            raise self._gone() from error

    def _receive(self, length: int) -> bytes:
        received = bytearray()
        while len(received) < length:
            piece = self._socket.recv(length - len(received))
            if not piece:
                raise self._gone()
            received += piece
        return bytes(received)

    def _gone(self) -> DeviceGone:
        self._log.seek(0)
        return DeviceGone(f"swtpm ended: {quote(self._log.read(300).decode('utf-8', 'replace'), 300)}")
