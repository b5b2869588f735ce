"""Software TPMs for tests: manufactured once a run, copied for each test, reached over a recording tunnel or a TCTI.

The copies are clones (one EK): tests that need two units manufacture two. Nothing here may be needed to run Hallmark.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from drivers.swtpm.process import SwtpmProcess, manufacture
from drivers.tpm import codec
from drivers.tpm.driver import TCTI, TUNNEL, TctiSettings, TunnelSettings
from drivers.tpm.tcti import TctiTransport
from hal.call import Call
from hal.driver import Bindings, opened
from hal.errors import DeviceBusy
from hal.interfaces import TpmTransport
from hal.types import EndorsementKey

SECONDS = 20.0


def lasting() -> Call:
    return Call.lasting(SECONDS)


class Recorder:
    """A TpmTransport in the middle: keeps each frame in both directions, and can be told to interfere."""

    def __init__(self, inner: TpmTransport) -> None:
        self.inner = inner
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.before: Callable[[Call, bytes], bytes | None] = lambda call, command: None
        """Gives an answer instead of the TPM, or raises; None lets the command through."""
        self.after: Callable[[bytes, bytes], bytes] = lambda command, response: response

    def transmit(self, call: Call, command: bytes) -> bytes:
        self.sent.append(command)
        instead = self.before(call, command)
        response = instead if instead is not None else self.inner.transmit(call, command)
        response = self.after(command, response)
        self.received.append(response)
        return response

    @property
    def codes(self) -> list[int]:
        """Command codes, in the order sent."""
        return [int.from_bytes(command[6:10], "big") for command in self.sent]

    def carried(self, octets: bytes) -> bool:
        return any(octets in frame for frame in self.sent + self.received)

    @contextlib.contextmanager
    def visit(self) -> Iterator[Bindings]:
        """What the driver tcti-tunnel offers over this transport."""
        with opened([("tpm", TUNNEL, TunnelSettings())], {TpmTransport: self}) as bindings:
            yield bindings


@pytest.fixture(scope="session")
def ek_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("swtpm") / "ek-ca"


@pytest.fixture(scope="session")
def tpm_template(tmp_path_factory: pytest.TempPathFactory, ek_ca: Path) -> Path:
    """A manufactured TPM's folder, to be copied only."""
    state = tmp_path_factory.mktemp("swtpm") / "template"
    manufacture(state, ek_ca)
    return state


@pytest.fixture
def tpm_state(tmp_path: Path, tpm_template: Path) -> Path:
    state = tmp_path / "tpm"
    shutil.copytree(tpm_template, state)
    return state


@pytest.fixture
def swtpm(tpm_state: Path) -> Iterator[SwtpmProcess]:
    with SwtpmProcess(tpm_state) as process:
        yield process


@pytest.fixture
def line(swtpm: SwtpmProcess) -> Recorder:
    """The recorded line to a TPM that nobody owns."""
    return Recorder(swtpm)


@pytest.fixture
def ek(line: Recorder) -> EndorsementKey:
    """The verified EK of that TPM; what was recorded to read it is forgotten."""
    from hal.interfaces import EndorsementIdentity

    with line.visit() as bindings:
        found = bindings.get(EndorsementIdentity).endorsements(lasting()).keys[0]
    line.sent.clear()
    line.received.clear()
    return found


@contextlib.contextmanager
def listening(state: Path, path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A swtpm that listens on a unix socket, as somebody starts one by hand, and the TCTI that leads to it."""
    child = subprocess.Popen(
        [
            *["swtpm", "socket", "--tpm2", "--tpmstate", "dir=.", "--flags", "not-need-init,startup-clear"],
            *["--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl"],
        ],
        cwd=state,
        stderr=subprocess.DEVNULL,
    )
    try:
        probe, call = TctiTransport(f"swtpm:path={path}"), lasting()
        while True:
            # Its sockets are there a moment before it listens on them.
            with contextlib.suppress(DeviceBusy):
                probe.transmit(call, codec.get_capability(codec.CAP_HANDLES, codec.PERSISTENT_OBJECTS, 1))
                break
            call.pause(0.005)
        probe.close()
        yield child, f"swtpm:path={path}"
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def tcti_device(tpm_state: Path, tmp_path: Path) -> Iterator[Callable[[], AbstractContextManager[Bindings]]]:
    """Opens the driver tcti on such a swtpm."""
    with listening(tpm_state, tmp_path / "s") as (_, tcti):

        @contextlib.contextmanager
        def open_device() -> Iterator[Bindings]:
            with opened([("tpm", TCTI, TctiSettings(tcti=tcti))], {}) as bindings:
                yield bindings

        yield open_device
