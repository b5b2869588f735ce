"""Certificate profiles: what a device certificate says, and how a request becomes the certificate's fields.

A profile is one TOML file; its name is the file's. Of a device's request only the key is used, and its subject
compared: whatever else it asks for is not granted. Signing, serial numbers' uniqueness and the clock are `issuing`'s.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Meta, Struct

from hal.errors import ConfigError, ProfileViolation, quote
from hal.types import KeyType
from station.signer.authority import Authority
from station.signer.csr import Request
from station.strict import Problems, convert
from station.toml_source import TomlSource, read

COMMON_NAME_LIMIT: Final = 64
"""Characters: ub-common-name and ub-organization-name (RFC 5280, appendix A.1), ub-serial-number (X.520)."""
PRINTABLE: Final = re.compile(r"[A-Za-z0-9 '()+,./:=?-]+")
"""PrintableString (X.680, 41.4), which X.520 wants for the serialNumber attribute."""
PLACEHOLDERS: Final = {"registration_id", "unit"}
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Template = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        description="text of at most 200 characters",
    ),
]
Days = Annotated[int, Meta(ge=1, le=36525, description="a whole number of days, 1 to 36525")]


class SubjectSection(Struct, frozen=True):
    """Attributes in the order in which the certificate has them."""

    common_name: Template
    organization: Template | None = None
    organizational_unit: Template | None = None
    serial_number: Template | None = None


class ValiditySection(Struct, frozen=True):
    """`days` from now, but never past the issuer; fewer than `minimum_days` left there refuses the request.

    notBefore lies `backdate_minutes` in the past, so that a device with a slow clock takes the certificate at once.
    """

    days: Days
    minimum_days: Days
    backdate_minutes: Annotated[int, Meta(ge=0, le=1440, description="minutes, 0 to 1440")] = 60


class ExtensionsSection(Struct, frozen=True):
    """`san` entries: `dns:NAME` or `uri:URI`."""

    key_usage: list[Literal["digital_signature", "key_encipherment", "key_agreement"]]
    extended_key_usage: list[Literal["client_auth"]]
    san: list[Template] = []


class KeySection(Struct, frozen=True):
    """`resident`: only for a key that was shown to be in a TPM and unable to leave it: the request has the proof."""

    resident: bool = False


class ProfileFile(Struct, frozen=True):
    key_type: KeyType
    subject: SubjectSection
    validity: ValiditySection
    extensions: ExtensionsSection
    key: KeySection = KeySection()


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    file: ProfileFile

    @property
    def longest_days(self) -> int:
        """How long a certificate of this profile may be valid, for policies about where its key is kept."""
        return self.file.validity.days

    def window(self, now: dt.datetime, authority: Authority) -> tuple[dt.datetime, dt.datetime]:
        """NotBefore and notAfter, within those of all CAs above. ProfileViolation when too little would be left."""
        validity = self.file.validity
        limit = authority.not_after
        end = min(now + dt.timedelta(days=validity.days), limit)
        if end < now + dt.timedelta(days=validity.minimum_days):
            left = max((limit - now).days, 0)
            message = (
                f"profile {self.name!r} wants at least {validity.minimum_days} days of validity,"
                f" and the issuing CA has {left} left"
            )
            raise ProfileViolation(message, hint="The issuing CA needs a new certificate: `hallmark ca csr`.")
        start = max(now - dt.timedelta(minutes=validity.backdate_minutes), authority.not_before)
        return start.replace(microsecond=0), end.replace(microsecond=0)

    def check_request(self, request: Request) -> None:
        """ProfileViolation when the key is not of the profile's type."""
        if request.key_type is not self.file.key_type:
            found = request.key_type or "another kind"
            message = f"profile {self.name!r} is for {self.file.key_type} keys; the request has {found}"
            raise ProfileViolation(message)

    def builder(
        self,
        request: Request,
        facts: Mapping[str, str],
        serial: int,
        now: dt.datetime,
        authority: Authority,
    ) -> x509.CertificateBuilder:
        """All fields of the certificate. `facts`: values of PLACEHOLDERS."""
        start, end = self.window(now, authority)
        issuer = authority.issuer
        usage = self.file.extensions.key_usage
        issuer_ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._subject(facts))
            .issuer_name(issuer.subject)
            .public_key(request.public_key)
            .serial_number(serial)
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature="digital_signature" in usage,
                    content_commitment=False,
                    key_encipherment="key_encipherment" in usage,
                    data_encipherment=False,
                    key_agreement="key_agreement" in usage,
                    key_cert_sign=False,
                    crl_sign=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_ski), critical=False
            )
        )
        names = [self._general_name(entry, facts) for entry in self.file.extensions.san]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder

    def _subject(self, facts: Mapping[str, str]) -> x509.Name:
        subject = self.file.subject
        wanted = (
            (NameOID.ORGANIZATION_NAME, subject.organization),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, subject.organizational_unit),
            (NameOID.SERIAL_NUMBER, subject.serial_number),
            (NameOID.COMMON_NAME, subject.common_name),
        )
        attributes = []
        for oid, template in wanted:
            if template is None:
                continue
            value = fill(template, facts)
            if not 1 <= len(value) <= COMMON_NAME_LIMIT or not value.isprintable():
                message = f"the subject's {oid._name} would be {quote(value)}; at most {COMMON_NAME_LIMIT} characters"
                raise ProfileViolation(message)
            if oid == NameOID.SERIAL_NUMBER and not PRINTABLE.fullmatch(value):
                message = (
                    f"the subject's serialNumber would be {quote(value)}, which no PrintableString can hold"
                )
                raise ProfileViolation(message)
            attributes.append(x509.NameAttribute(oid, value))
        return x509.Name(attributes)

    def _general_name(self, template: str, facts: Mapping[str, str]) -> x509.GeneralName:
        kind, _, value = fill(template, facts).partition(":")
        try:
            return x509.DNSName(value) if kind == "dns" else x509.UniformResourceIdentifier(value)
        except ValueError as error:
            message = f"the subject alternative name {quote(value)} is none"
            raise ProfileViolation(message) from error


def fill(template: str, facts: Mapping[str, str]) -> str:
    """`template` with its placeholders' values. Not str.format, which would follow attributes and indexes."""
    return _PLACEHOLDER.sub(lambda found: facts[found[1]], template)


def load_profile(folder: Path, name: str) -> Profile:
    """The profile `name`. ProfileViolation for a name that is none; ConfigError with file, line and key."""
    if not _NAME.fullmatch(name) or not (folder / f"{name}.toml").is_file():
        message = f"there is no certificate profile {quote(name)}"
        raise ProfileViolation(message)
    source = read(folder / f"{name}.toml")
    problems = Problems()
    file = convert(source, ProfileFile, problems)
    if file is not None:
        _check(source, file, problems)
    problems.raise_first()
    if file is None:
        message = "could not be read"
        raise ConfigError(message, file=source.file)
    return Profile(name, file)


def load_profiles(folder: Path) -> dict[str, Profile]:
    """Every profile of the folder by name; ConfigError for the first that is wrong, or when there is none."""
    found = {path.stem: load_profile(folder, path.stem) for path in sorted(folder.glob("*.toml"))}
    if not found:
        message = "expected at least one certificate profile (*.toml) in this folder"
        raise ConfigError(message, file=str(folder))
    return found


def _check(source: TomlSource, file: ProfileFile, problems: Problems) -> None:
    """What types alone can't say."""
    templates = [
        *((("subject", key), getattr(file.subject, key)) for key in file.subject.__struct_fields__),
        *((("extensions", "san", index), entry) for index, entry in enumerate(file.extensions.san)),
    ]
    for key, template in templates:
        unknown = set(_PLACEHOLDER.findall(template or "")) - PLACEHOLDERS
        bare = _PLACEHOLDER.sub("", template or "")
        if unknown or "{" in bare or "}" in bare:
            problems.add(source, key, "expected only {registration_id} and {unit} in braces")
    if "{registration_id}" not in file.subject.common_name:
        problems.add(source, ("subject", "common_name"), "expected {registration_id}, which names the device")
    for index, entry in enumerate(file.extensions.san):
        if not entry.startswith(("dns:", "uri:")):
            problems.add(
                source, ("extensions", "san", index), "expected an entry that starts with dns: or uri:"
            )
    if file.validity.minimum_days > file.validity.days:
        problems.add(source, ("validity", "minimum_days"), "expected no more than validity.days")
    if "client_auth" not in file.extensions.extended_key_usage:
        problems.add(source, ("extensions", "extended_key_usage"), 'expected "client_auth" in it')
    if "digital_signature" not in file.extensions.key_usage:
        problems.add(source, ("extensions", "key_usage"), 'expected "digital_signature": TLS clients sign')
    if "key_encipherment" in file.extensions.key_usage and file.key_type in (KeyType.P256, KeyType.P384):
        problems.add(
            source,
            ("extensions", "key_usage"),
            "expected no key_encipherment, which is for RSA keys (RFC 5480)",
        )
    if "key_agreement" in file.extensions.key_usage and file.key_type in (KeyType.RSA2048, KeyType.RSA3072):
        problems.add(
            source,
            ("extensions", "key_usage"),
            "expected no key_agreement, which is for EC keys (RFC 3279)",
        )
