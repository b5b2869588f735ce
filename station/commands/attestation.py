"""`hallmark attestation`: checks what was proven of a unit's TPM keys, from a record alone; needs no station."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from msgspec import Struct

from hal.errors import ConfigError, ProtocolViolation, quote
from station import attestation
from station.attestation import SIZE_LIMIT, Transcript, checks, failure
from station.commands.source import Source
from station.signature import spki

HELP: Final = "check the transcript of what was proven of a unit's TPM keys"
FINE, NOT_FINE = 0, 1
RECORD_LIMIT: Final = 8 << 20
"""Octets of an archive record at most."""
WORD: Final = (
    "That the EK and the attestation key are in one TPM is the station's word: it made the credential and compared the"
    " secret. That the device key is in the attestation key's TPM is that TPM's own signature."
)


class _Archive(Struct, frozen=True):
    """Of an archive record (`station.archive`), what is looked at here."""

    attestation: Transcript | None = None
    chain: list[bytes] = []


class Checked(Struct, frozen=True):
    """One check; `problem` empty when it holds."""

    check: str
    problem: str


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hallmark attestation ID | --file RECORD.json [--certificate device.pem] [--json]"
    parser.add_argument("id", nargs="?", metavar="ID", help="a unit or registration ID of this station")
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="attestation.json of `hallmark units export`, or an archive record",
    )
    parser.add_argument(
        "--certificate",
        type=Path,
        metavar="PEM",
        help="the device's certificate, whose key has to be the proven one",
    )
    parser.add_argument("--json", action="store_true", help="for scripts: one check a line")


def run(args: argparse.Namespace) -> int:
    if (args.id is None) == (args.file is None):
        raise ConfigError("name a unit, or a record with --file", hint="See `hallmark attestation --help`.")
    if args.file is not None:
        transcript, leaf = _from_file(args.file)
    else:
        with Source(args.paths) as source:
            record = source.unit(args.id)
        if record.attestation is None:
            raise ConfigError(
                f"nothing was proven of a TPM key of {quote(args.id)}", hint="See `hallmark units show`."
            )
        transcript = attestation.from_json(record.attestation)
        leaf = record.certificate.chain[0] if record.certificate is not None else None
    if args.certificate is not None:
        leaf = _certificate(args.certificate)
    found = list(_check(transcript, leaf))
    for item in found:
        if args.json:
            print(msgspec.json.encode(item).decode())
        else:
            print(f"{'holds ' if not item.problem else 'FAILED'}  {item.check}")
            if item.problem:
                print(f"        {item.problem}")
    if not args.json:
        print(WORD)
    return NOT_FINE if any(item.problem for item in found) else FINE


def _check(transcript: Transcript, leaf: bytes | None) -> list[Checked]:
    key = None
    if leaf is not None:
        try:
            key = spki(x509.load_der_x509_certificate(leaf).public_key())
        except ValueError as error:
            raise ConfigError("the certificate can't be read") from error
    return [Checked(name, failure(check) or "") for name, check in checks(transcript, key)]


def _from_file(path: Path) -> tuple[Transcript, bytes | None]:
    """The transcript, and the leaf where the record has one."""
    data = _read(path)
    try:
        return attestation.from_json(data[: SIZE_LIMIT + 1]), None
    except ProtocolViolation as error:
        try:
            found = msgspec.json.decode(data, type=_Archive)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ConfigError(str(error), file=str(path)) from error
    if found.attestation is None:
        raise ConfigError("nothing was proven of a TPM key in this record", file=str(path))
    return found.attestation, found.chain[0] if found.chain else None


def _certificate(path: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        return x509.load_pem_x509_certificate(_read(path)).public_bytes(Encoding.DER)
    except ValueError as error:
        raise ConfigError("expected a certificate (PEM)", file=str(path)) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(RECORD_LIMIT)
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", file=str(path)) from error
