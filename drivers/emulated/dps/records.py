"""What an enrollment record may be, to the official description, and what the service adds to one it takes.

Pure: JSON in, JSON out, Refusal for what the service would not take. Storing and HTTP are elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from drivers.emulated.dps.refusal import bad_request
from drivers.emulated.dps.tpm import storage_key

Json = dict[str, Any]

ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9:._-]{0,126}[a-z0-9])?", re.IGNORECASE)
"""Up to 128 of alphanumerics and : . _ -, none of these at start or end; case-insensitive (registrationId)."""
DEVICE_ID: Final = re.compile(r"[A-Za-z0-9\-:.+%_#*?!(),=@$']{1,128}")
"""IoT Hub: 1 to 128 of ASCII alphanumerics and - : . + % _ # * ? ! ( ) , = @ $ '."""
FORBIDDEN_TAGS: Final = {"version", "count", "metadata"}
WRITABLE: Final[dict[str, type]] = {
    "deviceId": str,
    "attestation": dict,
    "capabilities": dict,
    "iotHubHostName": str,
    "initialTwin": dict,
    "etag": str,
    "provisioningStatus": str,
    "reprovisionPolicy": dict,
    "allocationPolicy": str,
    "iotHubs": list,
    "customAllocationDefinition": dict,
    "optionalDeviceInformation": dict,
}
READ_ONLY: Final = {"registrationState", "createdDateTimeUtc", "lastUpdatedDateTimeUtc"}


def checked(record: object, id_field: str) -> Json:
    """A record as stored: checked, its defaults set. `id_field`: registrationId or enrollmentGroupId."""
    if not isinstance(record, dict):
        raise bad_request("the enrollment is not an object")
    name = record.get(id_field)
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise bad_request(f"{id_field} is missing or has characters that are not allowed")
    kept: Json = {id_field: name.lower()}
    for field, value in record.items():
        if field == id_field or field in READ_ONLY or value is None:
            continue
        if field not in WRITABLE:
            raise bad_request(f"could not find member {field[:40]!r} on the enrollment")
        if not isinstance(value, WRITABLE[field]):
            raise bad_request(f"{field} has the wrong type")
        kept[field] = value
    kept.pop("etag", None)
    if "deviceId" in kept and not DEVICE_ID.fullmatch(kept["deviceId"]):
        raise bad_request("deviceId has characters that are not allowed")
    _check_enum(kept, "provisioningStatus", ("enabled", "disabled"), "enabled")
    _check_enum(kept, "allocationPolicy", ("hashed", "geoLatency", "static", "custom"), "hashed")
    _check_flags(kept, "capabilities", {"iotEdge": False})
    _check_flags(kept, "reprovisionPolicy", {"updateHubAssignment": True, "migrateDeviceData": True})
    _check_twin(kept.get("initialTwin", {}))
    kept["attestation"] = _attestation(kept.get("attestation"), group=id_field == "enrollmentGroupId")
    return kept


def _check_enum(record: Json, field: str, values: tuple[str, ...], default: str) -> None:
    if record.setdefault(field, default) not in values:
        raise bad_request(f"{field} is none of {', '.join(values)}")


def _check_flags(record: Json, field: str, defaults: dict[str, bool]) -> None:
    flags = record.setdefault(field, dict(defaults))
    if set(flags) != set(defaults) or not all(isinstance(value, bool) for value in flags.values()):
        raise bad_request(f"{field} needs {', '.join(defaults)}, true or false")


def _check_twin(twin: Json) -> None:
    tags = twin.get("tags", {})
    if not isinstance(tags, dict) or not isinstance(twin.get("properties", {}), dict):
        raise bad_request("initialTwin has the wrong shape")
    for name in tags:
        if name in FORBIDDEN_TAGS or re.search(r"[\x00-\x20.$]", name):
            raise bad_request("initialTwin.tags holds a name that is not allowed")


def _attestation(given: object, *, group: bool) -> Json:
    if not isinstance(given, dict):
        raise bad_request("attestation is missing")
    kind = given.get("type")
    if kind == "tpm" and not group:
        return {"type": "tpm", "tpm": _tpm(given.get("tpm"))}
    if kind == "x509":
        return {"type": "x509", "x509": _x509(given.get("x509"), group=group)}
    if kind == "symmetricKey":
        return {"type": "symmetricKey", "symmetricKey": _symmetric(given.get("symmetricKey"))}
    raise bad_request("attestation.type is not one that such an enrollment takes")


def _tpm(given: object) -> Json:
    if not isinstance(given, dict):
        raise bad_request("attestation.tpm is missing")
    kept = {}
    for field in ("endorsementKey", "storageRootKey"):
        value = given.get(field)
        if value is None and field == "storageRootKey":
            continue
        try:
            storage_key(base64.b64decode(value if isinstance(value, str) else "", validate=True))
        except (ValueError, binascii.Error) as error:
            raise bad_request(f"{field} is not a TPM2B_PUBLIC in base64: {error}") from error
        kept[field] = value
    return kept


def _x509(given: object, *, group: bool) -> Json:
    if not isinstance(given, dict):
        raise bad_request("attestation.x509 is missing")
    wanted = "signingCertificates" if group else "clientCertificates"
    pair = given.get(wanted)
    if not isinstance(pair, dict) or not isinstance(pair.get("primary"), dict):
        raise bad_request(f"attestation.x509.{wanted}.primary is missing")
    kept = {}
    for role in ("primary", "secondary"):
        if pair.get(role) is not None:
            der = certificate(pair[role].get("certificate") if isinstance(pair[role], dict) else None)
            kept[role] = {
                "certificate": der.public_bytes(Encoding.PEM).decode(),
                "info": certificate_info(der),
            }
    return {wanted: kept}


def _symmetric(given: object) -> Json:
    found = given if isinstance(given, dict) else {}
    kept = {}
    for field in ("primaryKey", "secondaryKey"):
        value = found.get(field) or base64.b64encode(secrets.token_bytes(64)).decode()
        try:
            octets = base64.b64decode(value, validate=True)
        except (ValueError, TypeError, binascii.Error) as error:
            raise bad_request(f"{field} is not base64") from error
        if not 16 <= len(octets) <= 64:
            raise bad_request(f"{field} has not 16 to 64 octets")
        kept[field] = value
    return kept


def certificate(text: object) -> x509.Certificate:
    """PEM, or base64 of DER or of PEM: what the official clients send."""
    try:
        if not isinstance(text, str):
            raise bad_request("the certificate is missing")
        if text.lstrip().startswith("-----BEGIN"):
            return x509.load_pem_x509_certificate(text.encode())
        octets = base64.b64decode(text, validate=True)
        if octets.startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(octets)
        return x509.load_der_x509_certificate(octets)
    except (ValueError, binascii.Error) as error:
        raise bad_request("the certificate can't be read") from error


def certificate_info(found: x509.Certificate) -> Json:
    """X509CertificateInfo of the official description."""
    return {
        "subjectName": found.subject.rfc4514_string(),
        "sha1Thumbprint": found.fingerprint(hashes.SHA1()).hex().upper(),  # noqa: S303 - the API's field
        "sha256Thumbprint": found.fingerprint(hashes.SHA256()).hex().upper(),
        "issuerName": found.issuer.rfc4514_string(),
        "notBeforeUtc": _time(found.not_valid_before_utc),
        "notAfterUtc": _time(found.not_valid_after_utc),
        "serialNumber": f"{found.serial_number:X}",
        "version": found.version.value + 1,
    }


def thumbprints(record: Json) -> set[str]:
    """SHA-256 thumbprints of the certificates that the record stands on."""
    pairs = record["attestation"].get("x509", {})
    return {entry["info"]["sha256Thumbprint"] for pair in pairs.values() for entry in pair.values()}


def shown(record: Json) -> Json:
    """The record as the service answers it: of certificates only the information, and no symmetric keys."""
    attestation = dict(record["attestation"])
    if attestation["type"] == "x509":
        attestation["x509"] = {
            name: {role: {"info": entry["info"]} for role, entry in pair.items()}
            for name, pair in attestation["x509"].items()
        }
    if attestation["type"] == "symmetricKey":
        attestation["symmetricKey"] = {}
    return {**record, "attestation": attestation}


def stamped(record: Json, before: Json | None, now: datetime) -> Json:
    """With a new ETag and the times that the service keeps."""
    created = before["createdDateTimeUtc"] if before else _time(now)
    stamps = {
        "etag": f'"{secrets.token_hex(8)}"',
        "createdDateTimeUtc": created,
        "lastUpdatedDateTimeUtc": _time(now),
    }
    return {**record, **stamps}


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
