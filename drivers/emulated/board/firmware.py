"""The MCU: bootloader, then the application, then requests one after the other until reset or the loss of power.

It runs as a process of its own, whose memory is the MCU's: whatever it is at when it is killed stays as it is in flash,
storage and TPM. Port, wire and the power switch are the machine's and don't come in.
"""

from __future__ import annotations

import collections
import enum
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Final, NoReturn

from smp.os_management import BootMode

from drivers.emulated.board.bootloader import Bootloader, flash_size
from drivers.emulated.board.delivery import Delivery
from drivers.emulated.board.flash import Flash
from drivers.emulated.board.frames import Deframer, frame
from drivers.emulated.board.images import Images
from drivers.emulated.board.options import Options
from drivers.emulated.board.power import Power, Stage
from drivers.emulated.board.provisioning import Provisioning
from drivers.emulated.board.server import Server
from drivers.emulated.board.storage import Files, KeyStore, SecretStore, Settings, mac_address, read_serial
from drivers.emulated.board.stores import FilesGroup, SettingsGroup
from drivers.emulated.board.system import System
from drivers.emulated.board.tpm import Tpm, die_with_parent
from drivers.emulated.image import Image

_READ: Final = 65536
_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})


class End(enum.IntEnum):
    """How the firmware's process ends by itself: its exit status."""

    OFF = 0
    """Switched off in an orderly way."""
    RESET = 64
    RECOVERY = 65
    """Reset into serial recovery."""
    BROKEN = 70
    """A fault of the emulation (EX_SOFTWARE of sysexits.h); the traceback went to standard error."""


def start(options: Options, power: Power, uart: socket.socket, lock: int, *, recovery: bool) -> int:
    """Powers the MCU: forks, and returns the process's number. `uart`: its end of the line; `lock` stays open in it."""
    parent = os.getpid()
    # Until the firmware has handlers of its own, the machine's would take its signals and lose them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return child
    end = End.BROKEN
    try:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(End.OFF)
        # Out of the terminal's process group: Ctrl-C is for the machine, which switches us off.
        os.setsid()
        _close_others({uart.fileno(), lock})
        end = Firmware(options, power, uart, lock, recovery=recovery).run()
    except BaseException:  # noqa: BLE001 - nothing may return into the machine's code from here
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(end)


def _close_others(keep: set[int]) -> None:
    """The machine's port and sockets must end with the machine, not with us."""
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor > sys.stderr.fileno() and descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the listing's own descriptor is closed already


class Firmware:
    def __init__(
        self, options: Options, power: Power, uart: socket.socket, lock: int, *, recovery: bool
    ) -> None:
        self._options = options
        self._power = power
        self._uart = uart
        self._lock = lock
        self._recovery = recovery
        self._tpm: Tpm | None = None
        self._system = System(options)
        self._deframer = Deframer(options.buf_size)
        self._off, wake = socket.socketpair()
        self._wake = wake

    def run(self) -> End:
        """From reset to the end. Returns how it ended."""
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        options = self._options
        time.sleep(options.boot_seconds)
        flash = Flash(
            options.state / "flash.bin", flash_size(options.slot_size), self._power, options.erase_seconds
        )
        bootloader = Bootloader(flash, options.slot_size)
        running = None if self._recovery else bootloader.boot()
        server = self._application(bootloader, running) if running else self._serial_recovery(bootloader)
        self._power.stage = Stage.APPLICATION if running else Stage.BOOTLOADER
        end = self._serve(server)
        if self._tpm is not None:
            self._tpm.shut_down()
        return end

    def _serial_recovery(self, bootloader: Bootloader) -> Server:
        images = Images(bootloader, None)
        return Server([*self._system.commands(), *images.commands()], self._options.buf_size)

    def _application(self, bootloader: Bootloader, running: Image) -> Server:
        options, power, state = self._options, self._power, self._options.state
        if options.tpm:
            self._tpm = Tpm(state / "tpm", power, keep=(self._lock,))
        serial = options.serial or read_serial(state)
        identity = {
            "board": options.board,
            "sn": serial,
            "mac": [mac_address(serial)],
            "fw": running.version,
        }
        settings = Settings(state / "settings.json", power)
        keys = KeyStore(state / "key.pem", power)
        provisioning = Provisioning(
            identity,
            self._tpm,
            keys,
            Delivery(keys, SecretStore(state / "secret.key", power)),
            lambda: self._self_test(bootloader),
            options.buf_size,
        )
        groups = (
            self._system,
            Images(bootloader, running),
            SettingsGroup(settings),
            FilesGroup(Files(state / "files", power), options.buf_size),
            provisioning,
        )
        commands = [command for group in groups for command in group.commands()]
        return Server(commands, options.buf_size)

    def _self_test(self, bootloader: Bootloader) -> list[tuple[str, bool, str]]:
        """Flash against its digest; the TPM by its own self-test (TPM2_SelfTest, full)."""
        running = bootloader.image(0)
        results = [("flash", running is not None and running.intact, "")]
        if self._tpm is not None:
            code = self._tpm.transmit(bytes.fromhex("8001 0000000b 00000143 01"))[6:10].hex()
            results.append(("tpm", code == "00000000", f"TPM2_SelfTest: {code}"))
        return results

    # --- requests ---

    def _serve(self, server: Server) -> End:
        poll = select.poll()
        poll.register(self._uart, select.POLLIN)
        poll.register(self._off, select.POLLIN)
        waiting: collections.deque[bytes] = collections.deque()
        while True:
            ready = dict(poll.poll())
            if self._off.fileno() in ready:
                return End.OFF
            self._receive(waiting)
            while waiting:
                self._answer(server, waiting.popleft())
                if self._system.reset is not None:
                    return End.RECOVERY if self._system.reset is BootMode.BOOTLOADER else End.RESET
                self._receive(waiting)

    def _receive(self, waiting: collections.deque[bytes]) -> None:
        """Takes what the UART holds. Messages beyond the SMP buffers are lost, as in a board that is busy."""
        try:
            data = self._uart.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            self._lose_machine()
        for message in self._deframer.feed(data):
            if len(waiting) < self._options.buf_count:
                waiting.append(message)

    def _answer(self, server: Server, message: bytes) -> None:
        before = self._power.effects
        answer = server.handle(message)
        if answer is None:
            return
        if self._power.effects != before:
            # What was done is done; power may be lost before anybody hears of it.
            self._power.point()
        self._uart.sendall(frame(answer, self._options.line_length))

    def _lose_machine(self) -> NoReturn:
        """The machine's process is gone, which is a power cut: no orderly way out, the kill is on its way."""
        os._exit(End.OFF)
