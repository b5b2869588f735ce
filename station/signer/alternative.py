"""Subject alternative names of a profile: `dns:NAME`, `uri:URI` and `hardware:OID:SERIAL`, and CRL addresses."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from asn1crypto.core import ObjectIdentifier, OctetString, Sequence
from cryptography import x509

from hal.errors import ProfileViolation, quote

KINDS: Final = ("dns:", "uri:", "hardware:")
HARDWARE_MODULE_NAME: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")
"""id-on-hardwareModuleName (RFC 4108, 5)."""
_HARDWARE: Final = re.compile(r"([0-2](?:\.(?:0|[1-9]\d{0,9})){1,20}):(.{1,200})")
_URL: Final = re.compile(r"(?:https?|ldap)://[!-~]{1,190}")


class HardwareModuleName(Sequence):  # type: ignore[misc] # asn1crypto has no types
    """HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING } (RFC 4108, 5)."""

    _fields: ClassVar = [("hw_type", ObjectIdentifier), ("hw_serial_num", OctetString)]


def wrong(entry: str) -> str:
    """What is expected in the place of this `san` entry; empty when it is one."""
    if not entry.startswith(KINDS):
        return f"expected an entry that starts with {' or '.join(KINDS)}"
    if entry.startswith("hardware:") and not _HARDWARE.fullmatch(entry.removeprefix("hardware:")):
        return "expected hardware:OID:SERIAL, as hardware:1.3.6.1.4.1.99999.1:{registration_id}"
    return ""


def general_name(entry: str) -> x509.GeneralName:
    """The name of an entry whose placeholders are filled. ProfileViolation when it is none."""
    kind, _, value = entry.partition(":")
    try:
        if kind == "hardware":
            return _hardware_module_name(value)
        return x509.DNSName(value) if kind == "dns" else x509.UniformResourceIdentifier(value)
    except ValueError as error:
        message = f"the subject alternative name {quote(value)} is none"
        raise ProfileViolation(message) from error


def _hardware_module_name(text: str) -> x509.OtherName:
    """HwSerialNum is the serial's text. ValueError for what is no OID and serial."""
    found = _HARDWARE.fullmatch(text)
    if found is None:
        message = "expected OID:SERIAL"
        raise ValueError(message)
    value = HardwareModuleName({"hw_type": found[1], "hw_serial_num": found[2].encode()})
    return x509.OtherName(HARDWARE_MODULE_NAME, value.dump())


def is_url(text: str) -> bool:
    """Whether a revocation list can be fetched there (RFC 5280, 4.2.1.13: HTTP or LDAP)."""
    return _URL.fullmatch(text) is not None


def distribution_point(url: str) -> x509.DistributionPoint:
    return x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
