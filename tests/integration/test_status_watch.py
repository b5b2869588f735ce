"""`hallmark status` as people run it: in a real terminal, into a pipe, and across a restart of the station."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from station.paths import Paths
from station.status.routes import Groups
from station.status.server import StatusServer
from station.status.view import TokenView
from tests.fixtures_status import PASSED, FakeControl, FakeRecords

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20


class Station:
    """A status server below a --root, which can be stopped and started."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.paths.runtime.mkdir(parents=True)
        self.control = FakeControl()
        self._server: StatusServer | None = None

    def start(self) -> None:
        self._server = StatusServer(
            self.control, FakeRecords(), self.paths.status_socket, Groups("root", "root")
        )
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


@pytest.fixture
def station(socket_folder: Path) -> Iterator[Station]:
    made = Station(socket_folder)
    made.start()
    yield made
    made.stop()


def command(station: Station, *words: str, terminal: bool = False) -> list[str]:
    # A session's leader that opens a terminal gets it as its own: then Ctrl-C comes as a signal.
    own = "import os; os.close(os.open(os.ttyname(0), os.O_RDWR)); " if terminal else ""
    code = own + "import sys; from station.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, "--root", str(station.paths.root), "status", *words]


def terminal_environment() -> dict[str, str]:
    """The size is the terminal's own, whatever the one who runs the tests has exported."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**kept, "TERM": "xterm-256color"}


def run(station: Station, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(station, *words), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def read_until(fd: int, seen: Callable[[str], bool], so_far: str = "") -> str:
    """What comes from `fd` until `seen` is content, or until the end."""
    until = time.monotonic() + SECONDS
    while not seen(so_far):
        ready, _, _ = select.select([fd], [], [], until - time.monotonic())
        assert ready, f"not seen within {SECONDS} s; what came: {so_far[-2000:]!r}"
        try:
            part = os.read(fd, 65536)
        except OSError:  # EIO: the terminal's other side is closed
            return so_far
        if not part:
            return so_far
        so_far += part.decode(errors="replace")
    return so_far


def test_once_as_text_as_json_and_as_a_picture(station: Station, tmp_path: Path) -> None:
    text = run(station)
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.startswith("line-1  BENCH (not for production)  running")
    said = run(station, "--json")
    assert said.returncode == 0
    assert [nest["name"] for nest in json.loads(said.stdout)["nests"]] == ["A", "B", "C", "D"]
    assert run(station, "--svg", str(tmp_path / "p.svg")).returncode == 0
    assert "<svg" in (tmp_path / "p.svg").read_text()


def test_what_needs_a_person_is_exit_code_1_and_no_station_3(station: Station) -> None:
    token = TokenView("absent", "hallmark-ca", hint="Plug the CA token in.")
    station.control.station = msgspec.structs.replace(station.control.station, token=token)
    said = run(station)
    assert said.returncode == 1
    assert "Plug the CA token in." in said.stdout
    station.stop()
    for words in ([], ["--json"], ["--watch"]):
        said = run(station, *words)
        assert said.returncode == 3
        assert "no station answers" in said.stderr
        assert "Traceback" not in said.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="the test's own user is not in the operators group")
def test_operators_pause_and_resume(station: Station) -> None:
    assert "PAUSED" in run(station, "--pause").stdout
    assert "running" in run(station, "--resume").stdout
    assert run(station, "--retry", "A").returncode == 0
    assert run(station, "--retry", "Z").returncode == 1
    assert [call[0] for call in station.control.calls] == ["paused", "running", "retry"]


def test_into_a_pipe_it_prints_a_line_a_change_and_says_when_the_station_restarts(station: Station) -> None:
    with subprocess.Popen(
        command(station, "--watch"), cwd=ROOT, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        out = process.stdout.fileno()
        seen = read_until(out, lambda text: "outbox 3 queued" in text)
        station.control.views = [msgspec.structs.replace(PASSED, name="A"), *station.control.views[1:]]
        seen = read_until(
            out, lambda text: bool("nest A " in text.split("outbox")[-1] and "PASS" in text), seen
        )
        station.stop()
        seen = read_until(out, lambda text: "the station does not answer" in text, seen)
        station.start()
        seen = read_until(out, lambda text: "the station answers again" in text, seen)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    assert "\x1b" not in seen
    assert all(line[2] == line[5] == ":" for line in seen.splitlines())


def test_it_ends_when_nobody_reads_the_lines(station: Station) -> None:
    with subprocess.Popen(
        command(station, "--watch"), cwd=ROOT, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), lambda text: "outbox" in text)
        process.stdout.close()
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("leave", [b"q", b"\x03"])
def test_in_a_terminal_it_draws_outlives_a_restart_and_puts_the_terminal_back(
    station: Station, leave: bytes
) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    before = termios.tcgetattr(follower)
    process = subprocess.Popen(
        command(station, "--watch", terminal=True), cwd=ROOT, stdin=follower, stdout=follower, stderr=follower,
        env=terminal_environment(), start_new_session=True,
    )  # fmt: skip
    try:
        seen = read_until(leader, lambda text: "DO NOT UNPLUG" in text and "dps not reachable" in text)
        assert "\x1b[?1049h" in seen  # on the alternate screen
        assert "█" in seen
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 60, 0, 0))
        station.stop()
        read_until(leader, lambda text: "DOES NOT ANSWER" in text)
        station.control.views = [msgspec.structs.replace(PASSED, name="NEW")]
        station.start()
        read_until(leader, lambda text: "NEW" in text)
        os.write(leader, leave)
        seen = read_until(leader, lambda text: "\x1b[?1049l" in text)
        assert process.wait(SECONDS) == 0
        assert "Traceback" not in seen
        assert termios.tcgetattr(follower) == before
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        os.close(follower)
