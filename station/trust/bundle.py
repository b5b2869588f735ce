"""The trust bundle: TPM vendors' roots, intermediates and revocation lists in one signed JSON file, and its checks.

`bundle.json` stands with `bundle.json.sig` (see `station.signed`). Where it is installed is for `installed`; nothing
here touches a file but to read.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from hal.errors import ConfigError, quote
from station.signed import SignedFile, Signer, read_signed
from station.trust.chain import may_sign
from station.trust.crl import RevocationList, read_crl
from station.trust.reading import Certificate, read_certificate
from station.trust.trust_set import Origin, TrustSet, assemble

NAME: Final = "bundle.json"
FORMAT: Final = "hallmark-trust-bundle-1"
LIMIT: Final = 48 << 20
"""Octets of a bundle: its revocation lists may be large."""
MOST: Final = 1000
HINT: Final = "The bundle is left out and the one before stays. Ask whoever signed it for one that holds."

Text = Annotated[str, Meta(max_length=500)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Octets = Annotated[str, Meta(max_length=24 << 20)]
"""Base64 of DER."""


class CertificateEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """`sha256` is over the DER octets, hex."""

    sha256: Digest
    der: Octets


class CrlEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """As `CertificateEntry`; the dates are the list's own, repeated for whoever reads the file."""

    sha256: Digest
    this_update: dt.datetime
    next_update: dt.datetime
    der: Octets


class Vendor(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    roots: Annotated[list[CertificateEntry], Meta(max_length=MOST)]
    intermediates: Annotated[list[CertificateEntry], Meta(max_length=MOST)] = []
    crls: Annotated[list[CrlEntry], Meta(max_length=MOST)] = []
    note: Text = ""


class Bundle(Struct, frozen=True, forbid_unknown_fields=True):
    """`serial` grows with each bundle: a lower one never replaces a higher one."""

    format: str
    serial: Annotated[int, Meta(ge=1, lt=1 << 53)]
    created: dt.datetime
    vendors: Annotated[list[Vendor], Meta(min_length=1, max_length=MOST)]
    note: Text = ""


class Contents(Struct, frozen=True):
    """One vendor's part, read."""

    vendor: str
    note: str
    roots: list[Certificate]
    intermediates: list[Certificate]
    crls: list[RevocationList]


def read_bundle(path: Path, signers: tuple[Signer, ...]) -> tuple[SignedFile, Bundle]:
    """A bundle whose signature holds and whose form is right. ConfigError names the file."""
    signed = read_signed(path, signers, limit=LIMIT)
    return signed, parse(signed.data)


def parse(data: bytes) -> Bundle:
    """The manifest; ConfigError when it is none."""
    try:
        bundle = msgspec.json.decode(data, type=Bundle)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(f"{NAME} can't be read: {quote(str(error), 200)}", hint=HINT) from error
    if bundle.format != FORMAT:
        raise ConfigError(f"{NAME} has the form {quote(bundle.format)}; expected {FORMAT}", hint=HINT)
    names = [vendor.name for vendor in bundle.vendors]
    if len(set(names)) != len(names):
        raise ConfigError(f"{NAME} names a vendor twice", hint=HINT)
    for moment in (bundle.created, *(_moments(bundle))):
        if moment.tzinfo is None:
            raise ConfigError(f"{NAME} has a time without its zone: {moment}", hint=HINT)
    return bundle


def contents(bundle: Bundle) -> list[Contents]:
    """What is in it, each certificate and list checked. ConfigError says what doesn't hold and of which vendor.

    Roots are self-signed CAs, intermediates are CAs, lists are signed by a CA of the bundle. Dates are not judged: a
    list that was fresh when it was signed grows stale.
    """
    read = [
        Contents(
            vendor.name,
            vendor.note,
            [_certificate(vendor.name, entry) for entry in vendor.roots],
            [_certificate(vendor.name, entry) for entry in vendor.intermediates],
            [_crl(vendor.name, entry) for entry in vendor.crls],
        )
        for vendor in bundle.vendors
    ]
    authorities = [item for part in read for item in (*part.roots, *part.intermediates)]
    for part in read:
        for root in part.roots:
            if not root.self_signed:
                raise _bad(part.vendor, f"{quote(root.subject)} stands as a root and is not signed by itself")
        for item in part.intermediates:
            if item.self_signed:
                raise _bad(part.vendor, f"{quote(item.subject)} stands as an intermediate and is a root")
        for item in (*part.roots, *part.intermediates):
            if not may_sign(item):
                raise _bad(part.vendor, f"{quote(item.subject)} is no CA")
        part.crls[:] = [item.attributed(authorities) for item in part.crls]
        for crl in part.crls:
            if not crl.signers:
                raise _bad(
                    part.vendor,
                    f"the revocation list of {quote(crl.issuer)} is signed by no CA of the bundle",
                )
    return read


def trust_set(signed: SignedFile, bundle: Bundle, place: Path) -> TrustSet:
    """The bundle as the judge needs it; ConfigError where its contents don't hold."""
    parts = contents(bundle)
    return assemble(
        Origin("bundle", str(place), bundle.serial, signed.sha256, signed.signer.name),
        [replace(item, vendor=part.vendor) for part in parts for item in (*part.roots, *part.intermediates)],
        [item for part in parts for item in part.crls],
    )


def entry(der: bytes) -> CertificateEntry:
    return CertificateEntry(hashlib.sha256(der).hexdigest(), base64.b64encode(der).decode())


def crl_entry(crl: RevocationList) -> CrlEntry:
    return CrlEntry(crl.sha256.hex(), crl.this_update, crl.next_update, base64.b64encode(crl.der).decode())


def encode(bundle: Bundle) -> bytes:
    """The file's octets, for people as for programs."""
    return msgspec.json.format(msgspec.json.encode(bundle), indent=1) + b"\n"


def _moments(bundle: Bundle) -> Iterator[dt.datetime]:
    for vendor in bundle.vendors:
        for crl in vendor.crls:
            yield from (crl.this_update, crl.next_update)


def _certificate(vendor: str, item: CertificateEntry) -> Certificate:
    try:
        return read_certificate(_der(item))
    except ValueError as error:
        raise _bad(vendor, f"certificate {item.sha256[:16]} can't be read: {quote(str(error))}") from error


def _crl(vendor: str, item: CrlEntry) -> RevocationList:
    try:
        crl = read_crl(_der(item))
    except ValueError as error:
        raise _bad(
            vendor, f"revocation list {item.sha256[:16]} can't be read: {quote(str(error))}"
        ) from error
    if (crl.this_update, crl.next_update) != (item.this_update, item.next_update):
        raise _bad(vendor, f"the revocation list of {quote(crl.issuer)} has other dates than the bundle says")
    return crl


def _der(item: CertificateEntry | CrlEntry) -> bytes:
    try:
        der = base64.b64decode(item.der, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error
    if hashlib.sha256(der).hexdigest() != item.sha256:
        raise ValueError("its digest is another one")
    return der


def _bad(vendor: str, problem: str) -> ConfigError:
    return ConfigError(f"{NAME}, vendor {quote(vendor)}: {problem}", hint=HINT)
