"""What is around the MCU: port, wire, power switch, control socket. One thread, one poll loop.

It starts the firmware's process, passes octets between it and the port at the wire's pace, and cuts its power. What the
octets mean, and what is in flash, must not come in.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from drivers.emulated.board import commands, firmware
from drivers.emulated.board.commands import POWER_BACK_SECONDS
from drivers.emulated.board.control import ControlServer
from drivers.emulated.board.options import Options
from drivers.emulated.board.port import Port
from drivers.emulated.board.power import Power, Stage
from drivers.emulated.board.recording import Direction, Recording
from drivers.emulated.board.uart import Adapter, Line
from hal.errors import StationError

OFF_SECONDS: Final = 5.0
"""How long the firmware may take to switch off in an orderly way: the TPM may be at a command."""
_WINDOW: Final = 4096
"""Octets under way at most before the wire takes no more: a UART driver's buffer."""
_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


class Machine:
    def __init__(self, options: Options, lock: int) -> None:
        """`lock`: a locked descriptor that every process of this board keeps open."""
        self.options = options
        self._lock = lock
        self.power = Power()
        chance = random.Random(options.seed)  # noqa: S311 - noise that can be repeated
        self._chance = chance
        self._to_board = Line(options.baud, options.noise, options.loss, chance)
        self._to_host = Line(options.baud, options.noise, options.loss, chance)
        self._adapter = Adapter(options.latency_seconds)
        self._port = Port(options.port)
        self._recording = Recording(options.record) if options.record else None
        self._control = ControlServer(
            options.control, lambda verb, arguments: commands.act(self, verb, arguments)
        )
        self._mcu: int | None = None
        self._uart: socket.socket | None = None
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._ended: firmware.End | None = None
        """How the firmware ended, while the wire still carries its last words."""
        self._counters = {"boots": 0, "power_cuts": 0, "overrun": 0, "octets_in": 0, "octets_out": 0}
        self._looked_at = 0.0
        self._running = True
        self._announced = False
        self._signals, self._wake = socket.socketpair()
        # The TPM's process becomes our child when the firmware dies, so that we can wait for its end.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def run(self) -> None:
        """Until SIGTERM or SIGINT. StationError when the emulation itself fails."""
        self._signals.setblocking(False)
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            if not self.options.unplugged:
                self.plug()
            while self._running:
                self._turn()
        finally:
            self._switch_off()
            self._port.unplug()
            self._control.close()

    def _stop(self) -> None:
        self._running = False

    def _print_ready(self) -> None:
        ready = {
            "ready": True,
            "port": str(self.options.port),
            "control": str(self.options.control),
            "pid": os.getpid(),
        }
        print(json.dumps(ready), flush=True)

    # --- the poll loop ---

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        for fd in self._control.filenos():
            poll.register(fd, select.POLLIN)
        if self._port.plugged and len(self._to_board) < _WINDOW:
            poll.register(self._port, select.POLLIN)
        if self._uart is not None and self._ended is None and len(self._to_host) < _WINDOW:
            poll.register(self._uart, select.POLLIN)
        if self.options.until_eof:
            poll.register(sys.stdin, select.POLLIN)
        before = time.monotonic()
        ready = dict(poll.poll(self._timeout(before)))
        now = time.monotonic()
        # Octets that were there already when we came to look have been on the wire since the last look: the time that
        # the host's scheduler took from us is credited to the wire.
        written_at = now if now - before > 0.0002 else max(self._looked_at, before - 0.02)
        self._looked_at = now
        if self._signals.fileno() in ready:
            self._signals.recv(4096)
            self._reap()
        if (
            self.options.until_eof
            and sys.stdin.fileno() in ready
            and not os.read(sys.stdin.fileno(), _WINDOW)
        ):
            self._stop()
        if self._port.plugged and self._port.fileno() in ready:
            self._from_host(written_at)
        if self._uart is not None and self._uart.fileno() in ready:
            self._from_board(written_at)
        self._deliver(now)
        due = [action for when, action in self._timers if when <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for action in due:
            action()
        for fd in self._control.filenos():
            if fd in ready:
                self._control.serve(fd)
        if self._ended is not None and not len(self._to_host):
            self._restart(self._ended)

    def _timeout(self, now: float) -> float | None:
        """Milliseconds until something is due."""
        due = [when for when, _ in self._timers]
        waits = (self._to_board.due(now), self._to_host.due(now), self._adapter.due())
        due += [when for when in waits if when is not None]
        return max(0.0, min(due) - now) * 1000 if due else None

    def _from_host(self, written_at: float) -> None:
        data = self._port.read(_WINDOW)
        if data:
            self._record(Direction.TO_BOARD, data)
            # To a board without power, or in reset, octets are lost.
            if self._uart is not None:
                self._to_board.push(data, written_at)

    def _from_board(self, written_at: float) -> None:
        if self._uart is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            data = self._uart.recv(_WINDOW)
            if data:
                self._to_host.push(data, written_at)

    def _deliver(self, now: float) -> None:
        for_board = self._to_board.pop(now)
        if for_board and self._uart is not None:
            try:
                sent = self._uart.send(for_board)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                sent = 0
            self._counters["overrun"] += len(for_board) - sent
        self._adapter.push(self._to_host.pop(now), now)
        for_host = self._adapter.pop(now)
        if for_host and self._port.plugged:
            self._record(Direction.TO_HOST, for_host)
            self._counters["overrun"] += len(for_host) - self._port.write(for_host)

    def _record(self, direction: Direction, data: bytes) -> None:
        self._counters["octets_in" if direction is Direction.TO_BOARD else "octets_out"] += len(data)
        if self._recording is not None:
            self._recording.add(direction, data)

    # --- power ---

    def _start(self, *, recovery: bool = False) -> None:
        self._await_children()
        self._to_board.clear()
        uart, theirs = socket.socketpair()
        uart.setblocking(False)
        with theirs:
            self._mcu = firmware.start(self.options, self.power, theirs, self._lock, recovery=recovery)
        self._uart = uart
        self._ended = None
        self._counters["boots"] += 1
        if self.options.garble_start:
            self._to_host.push(self._chance.randbytes(self.options.garble_start), time.monotonic())

    def _cut_power(self) -> None:
        """At this instant: whatever the firmware and the TPM are at stays undone."""
        if self._mcu is not None:
            os.kill(self._mcu, signal.SIGKILL)
            os.waitpid(self._mcu, 0)
            self._mcu = None
            self._counters["power_cuts"] += 1
        self._without_power()

    def _without_power(self) -> None:
        self._await_children()
        if self._uart is not None:
            self._uart.close()
            self._uart = None
        self._ended = None
        self._timers.clear()
        self._to_host.clear()
        self._to_board.clear()
        self.power.stage = Stage.OFF

    def _switch_off(self) -> None:
        """Orderly, if the firmware is able to."""
        if self._mcu is not None:
            os.kill(self._mcu, signal.SIGCONT)
            os.kill(self._mcu, signal.SIGTERM)
            if self._wait(self._mcu, OFF_SECONDS):
                self._mcu = None
        self._cut_power()

    def _wait(self, child: int, seconds: float) -> bool:
        """Whether `child` ended within `seconds`."""
        handle = os.pidfd_open(child)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return False
        finally:
            os.close(handle)
        os.waitpid(child, 0)
        return True

    def _await_children(self) -> None:
        """The TPM's process, which dies with the firmware: its state can be opened when this returns."""
        if self._mcu is None:
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)

    def _reap(self) -> None:
        """Notices that the firmware has ended: by a reset, or because its power failed in the middle of something."""
        if self._mcu is None or self._ended is not None:
            return
        child, status = os.waitpid(self._mcu, os.WNOHANG)
        if not child:
            return
        self._mcu = None
        if os.WIFSIGNALED(status):
            self._counters["power_cuts"] += 1
            self.lose_power(POWER_BACK_SECONDS)
            return
        end = firmware.End(os.WEXITSTATUS(status))
        if end not in (firmware.End.RESET, firmware.End.RECOVERY):
            raise StationError(f"the emulated firmware ended by itself ({end.name})")
        while self._uart is not None and (rest := self._rest()):
            self._to_host.push(rest, time.monotonic())
        self._ended = end

    def _rest(self) -> bytes:
        """What the firmware had given to its UART before it ended; empty at the end."""
        try:
            return self._uart.recv(_WINDOW) if self._uart is not None else b""
        except (BlockingIOError, ConnectionResetError):
            return b""

    def _restart(self, end: firmware.End) -> None:
        """The reset, once its answer is on its way."""
        self._without_power()
        if self.options.reset_absence:
            self._adapter.clear()
            self._port.unplug()
            self._later(self.options.reset_absence, self._port.plug)
        self._start(recovery=end is firmware.End.RECOVERY)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + seconds, action))

    # --- what the bench may do to it ---

    def status(self) -> Mapping[str, object]:
        return {
            "plugged": self._port.plugged,
            "powered": self._mcu is not None,
            "stage": self.power.stage.name.lower(),
            "firmware_pid": self._mcu,
            "effects": self.power.effects,
            "tpm_commands": self.power.tpm_commands,
            "tpm_seconds": self.power.tpm_seconds,
            **self._counters,
        }

    def plug(self) -> None:
        """Port and power are there. Nothing when they are already."""
        self._port.plug()
        if self._mcu is None:
            self._start()
        if not self._announced:
            self._announced = True
            self._print_ready()

    def unplug(self) -> None:
        self._port.unplug()
        self._cut_power()

    def lose_power(self, seconds: float) -> None:
        """Now, and for so long. The port of a board with native USB goes too."""
        self._cut_power()
        if self.options.reset_absence:
            self._port.unplug()
        self._later(seconds, self.plug)

    def send_signal(self, number: signal.Signals) -> None:
        """Stops or continues the firmware's process. ValueError when there is none."""
        if self._mcu is None:
            raise ValueError("the board has no power")
        os.kill(self._mcu, number)

    def disturb(self, noise: float | None = None, loss: float | None = None) -> None:
        """New probabilities, per octet; None: as before."""
        for line in (self._to_board, self._to_host):
            line.noise = line.noise if noise is None else min(1.0, noise)
            line.loss = line.loss if loss is None else min(1.0, loss)
