"""Certificate profiles: what a device certificate says, and how a request becomes the certificate's fields.

A profile is one TOML file; its name is the file's. Of a device's request only the key is used, and its subject
compared: whatever else it asks for is not granted. Signing, serial numbers' uniqueness and the clock are `issuing`'s.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Meta, Struct

from hal.errors import ConfigError, ProfileViolation, quote
from hal.types import KeyType
from station.signer.alternative import distribution_point, general_name, is_url, wrong
from station.signer.authority import Authority
from station.signer.csr import Request
from station.signer.names import names_refused
from station.strict import Problems, convert
from station.toml_source import TomlSource, read

COMMON_NAME_LIMIT: Final = 64
"""Characters: ub-common-name and ub-organization-name (RFC 5280, appendix A.1), ub-serial-number (X.520)."""
PRINTABLE: Final = re.compile(r"[A-Za-z0-9 '()+,./:=?-]+")
"""PrintableString (X.680, 41.4), which X.520 wants for the serialNumber attribute."""
PLACEHOLDERS: Final = {"registration_id", "unit"}
NO_EXPIRY: Final = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
"""notAfter of a certificate without an end: GeneralizedTime 99991231235959Z (RFC 5280, 4.1.2.5; IEEE 802.1AR, 8.7)."""
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
    """`days` from now, but never past the CAs above; or `no_expiry`, under CAs that don't expire either.

    A certificate that would be valid for fewer than `minimum_days` (all of `days`, when left out), since it is cut at
    the issuer's end, is refused. Of these, `warehouse_days` may pass before the unit's first use; what is over is the
    time of use that each unit has at least, and there has to be some.

    notBefore lies `backdate_minutes` in the past, so that a device with a slow clock takes the certificate at once.
    """

    days: Days | None = None
    no_expiry: bool = False
    minimum_days: Days | None = None
    warehouse_days: Annotated[int, Meta(ge=0, le=36525, description="a whole number of days, 0 to 36525")] = (
        365
    )
    backdate_minutes: Annotated[int, Meta(ge=0, le=1440, description="minutes, 0 to 1440")] = 60


class ExtensionsSection(Struct, frozen=True):
    """`san` entries: `dns:NAME`, `uri:URI` or `hardware:OID:SERIAL` (a hardwareModuleName, RFC 4108).

    Without `extended_key_usage` the certificate has no such extension, and is good for any purpose (IEEE 802.1AR).
    """

    key_usage: list[Literal["digital_signature", "key_encipherment", "key_agreement"]]
    extended_key_usage: list[Literal["client_auth"]] | None = None
    san: list[Template] = []
    crl_distribution_points: list[Template] = []


class KeySection(Struct, frozen=True):
    """`resident`: only for a key that was shown to be in a TPM and unable to leave it: the request has the proof."""

    resident: bool = False


class ProfileFile(Struct, frozen=True):
    key_type: KeyType
    subject: SubjectSection
    validity: ValiditySection
    extensions: ExtensionsSection
    key: KeySection = KeySection()


NO_EXPIRY_DAYS: Final = (NO_EXPIRY - dt.datetime(2026, 1, 1, tzinfo=dt.UTC)).days
NEW_CA: Final = "The issuing CA needs a new certificate: `hallmark ca csr --new-key`."


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    file: ProfileFile
    source: TomlSource = field(compare=False, repr=False)

    @property
    def longest_days(self) -> int:
        """How long a certificate of this profile may be valid, for policies about where its key is kept."""
        return self.file.validity.days or NO_EXPIRY_DAYS

    @property
    def least_days(self) -> int:
        """How long a certificate of this profile is valid at least."""
        return self.file.validity.minimum_days or self.longest_days

    def allowed_until(self, authority: Authority) -> dt.datetime:
        """Until when these CAs can issue certificates of this profile that are valid for as long as it wants."""
        if self.file.validity.no_expiry:
            return NO_EXPIRY if authority.not_after >= NO_EXPIRY else authority.not_before
        return authority.not_after - dt.timedelta(days=self.least_days)

    def window(self, now: dt.datetime, authority: Authority) -> tuple[dt.datetime, dt.datetime]:
        """NotBefore and notAfter, within those of all CAs above. ProfileViolation when too little would be left."""
        validity = self.file.validity
        limit = authority.not_after
        start = max(now - dt.timedelta(minutes=validity.backdate_minutes), authority.not_before)
        if validity.no_expiry:
            if limit < NO_EXPIRY:
                raise ProfileViolation(self.outlives(authority), hint=NEW_CA)
            return start.replace(microsecond=0), NO_EXPIRY
        end = min(now + dt.timedelta(days=self.longest_days), limit)
        if end < now + dt.timedelta(days=self.least_days):
            left = max((limit - now).days, 0)
            message = (
                f"profile {self.name!r} wants at least {self.least_days} days of validity,"
                f" and the issuing CA has {left} left (until {limit:%Y-%m-%d})"
            )
            raise ProfileViolation(message, hint=NEW_CA)
        return start.replace(microsecond=0), end.replace(microsecond=0)

    def outlives(self, authority: Authority) -> str:
        """What is wrong with a certificate without end under CAs that have one."""
        first = min(authority.above, key=lambda one: one.not_valid_after_utc)
        return (
            f"profile {self.name!r} makes certificates that end on {NO_EXPIRY:%Y-%m-%d}, and"
            f" {quote(first.subject.rfc4514_string())} above them ends on {authority.not_after:%Y-%m-%d}:"
            " no certificate outlives its issuer"
        )

    def names(self, facts: Mapping[str, str]) -> tuple[x509.Name, list[x509.GeneralName]]:
        """Subject and alternative names for these values of PLACEHOLDERS."""
        return self._subject(facts), [general_name(fill(one, facts)) for one in self.file.extensions.san]

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
        subject, names = self.names(facts)
        refused = names_refused(authority.above, subject, names)
        if refused:
            message = f"profile {self.name!r}: {refused}"
            raise ProfileViolation(message)
        extensions = self.file.extensions
        usage = extensions.key_usage
        issuer_ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
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
        )
        if extensions.extended_key_usage:
            purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
            builder = builder.add_extension(purposes, critical=False)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(request.public_key), critical=False
        ).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_ski), critical=False
        )
        if extensions.crl_distribution_points:
            points = [distribution_point(fill(one, facts)) for one in extensions.crl_distribution_points]
            builder = builder.add_extension(x509.CRLDistributionPoints(points), critical=False)
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
    return Profile(name, file, source)


def load_profiles(folder: Path) -> dict[str, Profile]:
    """Every profile of the folder by name; ConfigError for the first that is wrong, or when there is none."""
    found = {path.stem: load_profile(folder, path.stem) for path in sorted(folder.glob("*.toml"))}
    if not found:
        message = "expected at least one certificate profile (*.toml) in this folder"
        raise ConfigError(message, file=str(folder))
    return found


def _check(source: TomlSource, file: ProfileFile, problems: Problems) -> None:
    """What types alone can't say."""
    lists = [(key, getattr(file.extensions, key)) for key in ("san", "crl_distribution_points")]
    templates = [
        *((("subject", key), getattr(file.subject, key)) for key in file.subject.__struct_fields__),
        *((("extensions", key, index), entry) for key, found in lists for index, entry in enumerate(found)),
    ]
    for key, template in templates:
        unknown = set(_PLACEHOLDER.findall(template or "")) - PLACEHOLDERS
        bare = _PLACEHOLDER.sub("", template or "")
        if unknown or "{" in bare or "}" in bare:
            problems.add(source, key, "expected only {registration_id} and {unit} in braces")
    if "{registration_id}" not in file.subject.common_name:
        problems.add(source, ("subject", "common_name"), "expected {registration_id}, which names the device")
    for index, entry in enumerate(file.extensions.san):
        expected = wrong(entry)
        if expected:
            problems.add(source, ("extensions", "san", index), expected)
    for index, entry in enumerate(file.extensions.crl_distribution_points):
        if not is_url(_PLACEHOLDER.sub("x", entry)):
            key = ("extensions", "crl_distribution_points", index)
            problems.add(source, key, "expected a URL, as http://crl.example.com/line-1.crl")
    _check_validity(source, file.validity, problems)
    if (
        file.extensions.extended_key_usage is not None
        and "client_auth" not in file.extensions.extended_key_usage
    ):
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


def _check_validity(source: TomlSource, validity: ValiditySection, problems: Problems) -> None:
    """One kind of end, and one that no unit meets in the warehouse."""
    days, least = validity.days, validity.minimum_days
    if (days is None) is not validity.no_expiry:
        problems.add(source, ("validity",), "expected either days, or no_expiry = true")
        return
    if days is None:
        if least is not None:
            problems.add(source, ("validity", "minimum_days"), "expected none beside no_expiry")
        return
    if least is not None and least > days:
        problems.add(source, ("validity", "minimum_days"), "expected no more than validity.days")
    key, shortest = ("days", days) if least is None else ("minimum_days", least)
    if shortest <= validity.warehouse_days:
        message = (
            f"expected more than warehouse_days ({validity.warehouse_days}): a unit may lie so long before its first"
            " use, and its certificate could have expired by then"
        )
        problems.add(source, ("validity", key), message)
