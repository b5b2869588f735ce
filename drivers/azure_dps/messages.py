"""Enrollments and answers in the service's own JSON (API 2021-10-01). Bytes in, values out; no network here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import ssl
from dataclasses import dataclass
from typing import Any, Final

from hal.errors import HallmarkError, Rejected, Throttled, Unauthorized, Unreachable, quote
from hal.secret import Secret
from hal.types import Enrollment, SymmetricKeyAttestation, TpmAttestation, X509Attestation

API_VERSION: Final = "2021-10-01"
BULK_LIMIT: Final = 10
"""Enrollments of one bulk request (Azure DPS, "Quotas and limits")."""
BODY_LIMIT: Final = 96 * 1024
"""Octets of one message to the service (same source)."""
REGISTRATION_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9:._-]{0,126}[a-z0-9])?")
RESERVED_TAGS: Final = frozenset({"version", "count", "metadata"})
"""Members of the service's TwinCollection: a tag of that name breaks later updates of the record."""
NOT_KEPT: Final = "(not kept)"
"""Stands for a key in whatever is kept of a request."""
_KEY: Final = re.compile(rb'"(?:primary|secondary)Key":"([A-Za-z0-9+/=]{20,})"')
TAG_FORBIDDEN: Final = re.compile(r"[\x00-\x20.$\x7f-\x9f]")
"""Characters that IoT Hub does not take in the name of a tag."""

Json = dict[str, Any]


def individual(enrollment: Enrollment, *, with_srk: bool = False, head_tag: str = "") -> Json:
    """The IndividualEnrollment of an enrollment, Rejected when the service could never take it.

    `head_tag`: the tag that takes the station's audit checkpoint; empty: it isn't sent.
    """
    if not REGISTRATION_ID.fullmatch(enrollment.registration_id):
        raise Rejected(f"registration ID {quote(enrollment.registration_id)} is not one that DPS takes")
    attestation: Json
    match enrollment.attestation:
        case TpmAttestation(ek=ek, srk=srk):
            tpm = {"endorsementKey": base64.b64encode(ek).decode()}
            if with_srk and srk is not None:
                tpm["storageRootKey"] = base64.b64encode(srk).decode()
            attestation = {"type": "tpm", "tpm": tpm}
        case X509Attestation(certificate=certificate):
            pem = ssl.DER_cert_to_PEM_cert(certificate)
            attestation = {"type": "x509", "x509": {"clientCertificates": {"primary": {"certificate": pem}}}}
        case SymmetricKeyAttestation(primary=primary, secondary=secondary):
            keys = {"primaryKey": _base64(primary), "secondaryKey": _base64(secondary)}
            attestation = {"type": "symmetricKey", "symmetricKey": keys}
        case other:
            raise Rejected(f"{type(other).__name__} has no individual enrollment")
    made: Json = {
        "registrationId": enrollment.registration_id,
        "deviceId": enrollment.device_id,
        "attestation": attestation,
        "provisioningStatus": "enabled",
    }
    if enrollment.tags:
        for name in enrollment.tags:
            if name.lower() in RESERVED_TAGS or TAG_FORBIDDEN.search(name):
                raise Rejected(
                    f"tag {quote(name)} has a name that the service does not take",
                    hint="Rename the tag in the recipe: no dots, spaces or $; not version, count or metadata.",
                )
        made["initialTwin"] = {"tags": dict(enrollment.tags)}
    if head_tag and enrollment.audit_head and head_tag not in enrollment.tags:
        made.setdefault("initialTwin", {"tags": {}})["tags"][head_tag] = enrollment.audit_head
    if len(encode(made)) > BODY_LIMIT:
        raise Rejected(f"the enrollment is over the service's limit of {BODY_LIMIT} octets")
    return made


def _base64(key: Secret) -> str:
    return base64.b64encode(key.reveal()).decode()


def kept(form: Json) -> Json:
    """The form as it may be kept: with a marker in the place of each key."""
    attestation = form["attestation"]
    if attestation["type"] != "symmetricKey":
        return form
    marked = dict.fromkeys(attestation["symmetricKey"], NOT_KEPT)
    return {**form, "attestation": {"type": "symmetricKey", "symmetricKey": marked}}


def without_keys(body: bytes, sent: bytes | None) -> bytes:
    """An answer's body without the keys that were sent: a service, or what stands before it, may quote a request."""
    for key in _KEY.findall(sent or b""):
        forms = (key, key.replace(b"/", rb"\/"), key.replace(b"+", rb"\u002B"), key.replace(b"+", rb"\u002b"))
        for form in forms:
            body = body.replace(form, NOT_KEPT.encode())
    return body


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def decode(body: bytes) -> Any:
    """Strict JSON: no NaN, no key twice, no lone bytes. Unreachable when it isn't: what answers is not the service."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise Unreachable(
            f"the service's answer can't be read: {quote(error)}", hint="Check the sink's endpoint."
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a key stands twice in one object"
        raise ValueError(message)
    return found


def _constant(name: str) -> float:
    message = f"{name} is not JSON"
    raise ValueError(message)


@dataclass(frozen=True, slots=True)
class ServiceError:
    """The service's own error body. `status` is the HTTP status inside of the six digits of `code`."""

    code: int
    message: str
    tracking_id: str

    @property
    def status(self) -> int:
        return status_of(self.code)

    def __str__(self) -> str:
        tracking = f" (tracking {quote(self.tracking_id)})" if self.tracking_id else ""
        return f"error {self.code}: {quote(self.message, 200)}{tracking}"


def status_of(code: int) -> int:
    """An errorCode is HTTP status x 1000 + n; some answers carry the bare status."""
    return code // 1000 if code >= 100_000 else code


def service_error(status: int, body: bytes) -> ServiceError | None:
    """The error that `body` describes, or None when it isn't the service that speaks (a proxy, another web server)."""
    try:
        found = decode(body)
    except Unreachable:
        return None
    if not isinstance(found, dict):
        return None
    code = found.get("errorCode")
    if not isinstance(code, int) or isinstance(code, bool) or status_of(code) != status:
        return None
    return ServiceError(code, str(found.get("message", "")), str(found.get("trackingId", "")))


@dataclass(frozen=True, slots=True)
class BulkAnswer:
    """What a bulk answer says of each item, by lower-case registration ID.

    `errors`: (errorCode, errorStatus). `done`: those that are certainly stored. An item in neither has to be looked up.
    """

    errors: dict[str, tuple[int, str]]
    done: frozenset[str]


def bulk_answer(body: bytes, asked: frozenset[str]) -> BulkAnswer:
    """Reads a BulkEnrollmentOperationResult with tolerance: `errors` may hold entries that say 200 Succeeded."""
    found = decode(body)
    if not isinstance(found, dict) or not isinstance(found.get("isSuccessful"), bool):
        raise Unreachable("the service's answer to a bulk request has no isSuccessful")
    listed = found.get("errors")
    readable = listed is None or isinstance(listed, list)
    errors: dict[str, tuple[int, str]] = {}
    succeeded: set[str] = set()
    for entry in listed if isinstance(listed, list) else ():
        name, code = _at(entry, "registrationId"), _at(entry, "errorCode")
        if not isinstance(name, str) or name.lower() not in asked or type(code) is not int:
            readable = False
        elif 200 <= status_of(code) < 300:
            succeeded.add(name.lower())
        else:
            errors[name.lower()] = (code, str(_at(entry, "errorStatus") or ""))
    done = asked if found["isSuccessful"] and readable else frozenset(succeeded)
    return BulkAnswer(errors, done - errors.keys())


def same_content(sent: Json, found: object) -> str | None:
    """None when the record `found` holds all that `sent` says; else what differs, for a person.

    What the service adds (etag, times, policies' defaults, other tags) makes no difference.
    """
    if not isinstance(found, dict):
        return "the record is no object"
    for name in ("registrationId", "deviceId", "provisioningStatus"):
        theirs = found.get(name)
        same = theirs == sent[name] or (
            name == "registrationId" and isinstance(theirs, str) and theirs.lower() == sent[name]
        )
        if not same:
            return f"{name} is {quote(theirs)}"
    difference = _attestation_differs(sent["attestation"], found.get("attestation"))
    if difference:
        return difference
    tags = _at(found, "initialTwin", "tags")
    for name, value in sent.get("initialTwin", {}).get("tags", {}).items():
        theirs = tags.get(name) if isinstance(tags, dict) else None
        if theirs != value:
            return f"tag {quote(name)} is {quote(theirs)}"
    return None


def without_head(form: Json, head_tag: str) -> Json:
    """`form` without the audit checkpoint, which is another one at each try."""
    twin = form.get("initialTwin", {"tags": {}})
    tags = {name: value for name, value in twin["tags"].items() if name != head_tag}
    return {**form, "initialTwin": {"tags": tags}} if "initialTwin" in form else form


def with_head_of(form: Json, found: object, head_tag: str) -> Json:
    """`form` with the audit checkpoint that the record `found` has kept, if it is one's text."""
    made = without_head(form, head_tag)
    kept = _at(found, "initialTwin", "tags", head_tag)
    if isinstance(kept, str):
        made = {
            **made,
            "initialTwin": {"tags": {**made.get("initialTwin", {"tags": {}})["tags"], head_tag: kept}},
        }
    return made


def _attestation_differs(sent: Json, found: object) -> str | None:
    kind = sent["type"]
    if not isinstance(found, dict) or found.get("type") != kind:
        return f"its attestation is {quote(_at(found, 'type'))}"
    if kind in ("tpm", "symmetricKey"):
        for name, value in sent[kind].items():
            if _octets(_at(found, kind, name)) != _octets(value):
                return f"another {name} is enrolled"
        return None
    ours = ssl.PEM_cert_to_DER_cert(sent["x509"]["clientCertificates"]["primary"]["certificate"])
    primary = _at(found, "x509", "clientCertificates", "primary")
    thumbprint = _at(primary, "info", "sha256Thumbprint")
    if isinstance(thumbprint, str):
        # Most answers leave the certificate out and give its thumbprint.
        matches = thumbprint.replace(":", "").lower() == hashlib.sha256(ours).hexdigest()
    else:
        matches = _certificate(_at(primary, "certificate")) == ours
    return None if matches else "another certificate is enrolled"


def kind_of(body: bytes) -> object:
    """The kind of attestation of the record in an answer."""
    return _at(decode(body), "attestation", "type")


def _at(value: object, *names: str) -> object:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _octets(value: object) -> bytes | None:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        return None


def _certificate(value: object) -> bytes | None:
    """DER of what the service may hold: PEM, or base64 of DER or of PEM, as its clients send it."""
    if not isinstance(value, str):
        return None
    text = value
    octets = _octets(value)
    if octets is not None and not octets.startswith(b"-----BEGIN"):
        return octets
    if octets is not None:
        text = octets.decode("ascii", "replace")
    try:
        return ssl.PEM_cert_to_DER_cert(text.strip() + "\n")
    except ValueError:
        return None


def item_error(code: int, text: str) -> HallmarkError:
    """What an item's own error means for it. 409 is not asked here: it needs a look at the record."""
    status = status_of(code)
    said = f"the service answered {code}: {quote(text, 200)}"
    if status == 429:
        return Throttled(said)
    if status in (401, 403):
        return Unauthorized(said)
    if 400 <= status < 500 and status != 408:
        return Rejected(said)
    return Unreachable(said)
