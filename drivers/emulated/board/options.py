"""What a board can be told at its start: one frozen value, and the command line that makes it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from drivers.emulated.board.flash import SECTOR
from drivers.emulated.board.tpm import EkCertificate

BUFFER_LEAST: Final = 256
"""The smallest SMP buffer that boards of this kind have (docs/vendor-group.md)."""
BUFFER_MOST: Final = 0xFFFF - 2
"""The length field of the serial framing counts message and CRC in 16 bits."""

EPILOG: Final = """\
It prints one line of JSON when it is first plugged in: {"ready": true, "port": ..., "control": ..., "pid": ...}.
SIGTERM and SIGINT switch it off in an orderly way; SIGKILL is a power cut.

The control socket takes one command a line and answers each with a line of JSON: {"ok": true, ...} or
{"ok": false, "error": ...}.
  status                 what it is doing, and counters
  unplug                 cable out: port and power are gone
  plug                   cable in
  power-cut [SECONDS]    power off for SECONDS (default 0.2); a port that is not native USB stays
  cut-at N [TEAR]        cut the power in the middle of the N-th durable effect from now (flash write or erase, save,
                         TPM command before and after, answer to what had effects); of a write, the part TEAR
                         (0 to 1, default 0.5) still happens
  hang, resume           the firmware stops answering, goes on
  noise RATE             flip a bit of an octet with this probability, both directions; 0 ends it
  loss RATE              lose an octet with this probability, both directions; 0 ends it
  corrupt SLOT OFFSET    flip the lowest bit of that octet in flash
"""


@dataclass(frozen=True, slots=True)
class Options:
    """As the command line's help says; durations in seconds."""

    state: Path
    port: Path
    control: Path
    ek_ca: Path
    board: str = "gw-200"
    serial: str | None = None
    tpm: bool = True
    ek_certificate: EkCertificate = EkCertificate.VENDOR
    factory_image: Path | None = None
    unplugged: bool = False
    until_eof: bool = False
    baud: int = 115200
    latency_seconds: float = 0.0
    garble_start: int = 0
    noise: float = 0.0
    loss: float = 0.0
    seed: int = 0
    reset_absence: float = 0.0
    boot_seconds: float = 0.02
    erase_seconds: float = 0.0
    slot_size: int = 1 << 20
    buf_size: int = 1024
    buf_count: int = 4
    line_length: int = 127
    record: Path | None = None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m drivers.emulated.board",
        description="A board with MCUboot-like slots, SMP and a TPM of its own, on a pseudo-terminal.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--state", type=Path, required=True, metavar="DIR", help="what it keeps: flash, settings, files, TPM")
    add("--port", type=Path, metavar="PATH", help="link to its terminal while plugged in (DIR/port)")
    add("--control", type=Path, metavar="PATH", help="its control socket (DIR/control)")
    add("--ek-ca", type=Path, metavar="DIR", help="the TPM maker's CA, shared by boards (DIR/ek-ca)")
    add("--board", metavar="NAME", help="board type it claims (gw-200)")
    add("--serial", metavar="TEXT", help="serial number it claims (the one burnt in at its first start)")
    add("--no-tpm", dest="tpm", action="store_false", help="the key is kept by the firmware instead")
    add("--ek-certificate", type=EkCertificate, choices=list(EkCertificate), help="of a new board (vendor)")
    add("--factory-image", type=Path, metavar="FILE", help="in slot 0 of a new board (none: it is blank)")
    add("--unplugged", action="store_true", help="don't plug in at the start")
    add(
        "--until-eof",
        action="store_true",
        help="switch off when standard input ends, so as not to outlive the starter",
    )
    add(
        "--baud",
        type=_whole,
        metavar="N",
        help="pace both directions at N/10 octets a second; 0: unpaced (115200)",
    )
    add(
        "--latency-ms",
        dest="latency_seconds",
        type=_milliseconds,
        metavar="N",
        help="a USB adapter's timer; 16 is usual (0)",
    )
    add("--garble-start", type=_whole, metavar="N", help="octets of garbage after each power-up or reset (0)")
    add("--noise", type=_rate, metavar="RATE", help="probability of a flipped bit, per octet (0)")
    add("--loss", type=_rate, metavar="RATE", help="probability of a lost octet (0)")
    add("--seed", type=int, metavar="N", help="of noise, loss and garbage (0)")
    add(
        "--reset-absence",
        type=_seconds,
        metavar="SECONDS",
        help="native USB: the port is away at each reset (0)",
    )
    add("--boot-ms", dest="boot_seconds", type=_milliseconds, metavar="N", help="from reset to ready (20)")
    add(
        "--erase-ms",
        dest="erase_seconds",
        type=_milliseconds,
        metavar="N",
        help=f"per {SECTOR} octets of flash (0)",
    )
    add("--slot-size", type=_whole, metavar="N", help="octets of each of the two slots (1048576)")
    add("--buf-size", type=_whole, metavar="N", help="octets of an SMP buffer, header included (1024)")
    add("--buf-count", type=_whole, metavar="N", help="SMP buffers (4)")
    add("--line-length", type=_whole, metavar="N", help="octets of a line it sends (127)")
    add("--record", type=Path, metavar="FILE", help="append all that crosses the port, as lines of JSON")
    return made


def parse(arguments: list[str] | None = None) -> Options:
    """The options of a command line; argparse ends the process with status 2 for others."""
    made = parser()
    args = made.parse_args(arguments)
    state: Path = args.state
    given = {field.name: getattr(args, field.name) for field in fields(Options)}
    for name in ("port", "control", "ek_ca"):
        given[name] = given[name] or state / name.replace("_", "-")
    options = Options(**{name: value for name, value in given.items() if value is not None})
    if not BUFFER_LEAST <= options.buf_size <= BUFFER_MOST:
        made.error(f"--buf-size: {BUFFER_LEAST} to {BUFFER_MOST}")
    if options.buf_count < 1 or options.line_length < 16:
        made.error("--buf-count: at least 1; --line-length: at least 16")
    return options


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise ValueError(text)
    return value


def _milliseconds(text: str) -> float:
    return _seconds(text) / 1000
