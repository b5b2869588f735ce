"""The device API: a device registers by what its enrollment stands on, and is assigned to a hub.

TPM: a challenge that only the enrolled EK can open, then a SAS by the key inside of it. X.509: the TLS client
certificate, by itself or through a group's CA. Symmetric key: a SAS by it, or by one derived from a group's.
To device-2021-10-01.json; the hub behind it is not emulated.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import secrets
from typing import Final

from cryptography import x509

from drivers.emulated.dps import sas
from drivers.emulated.dps.exchange import Answer, Request
from drivers.emulated.dps.records import certificate_info, stamped, thumbprints
from drivers.emulated.dps.refusal import Refusal, bad_request, not_found, unauthorized
from drivers.emulated.dps.store import Json, Store
from drivers.emulated.dps.tpm import challenge, storage_key
from drivers.emulated.dps.weather import Weather

POLICY: Final = "registration"
"""The `skn` of a device's token."""
IDENTITY_KEY: Final = 32
RETRY_SECONDS: Final = "1"


class DeviceApi:
    def __init__(self, store: Store, weather: Weather, id_scope: str, hub: str) -> None:
        self._store, self._weather, self._id_scope, self._hub = store, weather, id_scope, hub

    def handle(self, request: Request) -> Answer:
        request.check_version()
        match request.method, request.path:
            case "PUT", (scope, "registrations", name, "register"):
                return self._register(request, scope, name.lower())
            case "GET", (scope, "registrations", name, "operations", operation):
                return self._operation(request, scope, name.lower(), operation)
            case "POST", (scope, "registrations", name):
                self._authenticate(request, scope, name.lower(), {})
                return Answer(200, self._state(name))
        raise Refusal(405, "the method is not supported here")

    def _register(self, request: Request, scope: str, name: str) -> Answer:
        body = request.json()
        if not isinstance(body, dict) or str(body.get("registrationId", name)).lower() != name:
            raise bad_request("registrationId is not the one of the address")
        enrollment, result = self._authenticate(request, scope, name, body)
        operation = f"5.{secrets.token_hex(8)}.{secrets.token_hex(4)}"
        state: Json = {
            "registrationId": name,
            "assignedHub": self._hub,
            "deviceId": enrollment.get("deviceId", name),
            "status": "assigned",
            "substatus": "initialAssignment",
            "group": enrollment.get("enrollmentGroupId"),
            "operation": operation,
            **result,
        }
        if enrollment["provisioningStatus"] == "disabled":
            state |= {"status": "disabled", "assignedHub": None}
        with self._store.transaction():
            self._store.put(
                "registration",
                name,
                stamped(state, self._store.get("registration", name), self._weather.now()),
            )
        return Answer(202, {"operationId": operation, "status": "assigning"}, {"Retry-After": RETRY_SECONDS})

    def _operation(self, request: Request, scope: str, name: str, operation: str) -> Answer:
        self._authenticate(request, scope, name, {})
        state = self._state(name)
        if state["operation"] != operation:
            raise not_found("operation")
        return Answer(
            200, {"operationId": operation, "status": state["status"], "registrationState": _shown(state)}
        )

    def _state(self, name: str) -> Json:
        state = self._store.get("registration", name)
        if state is None:
            raise not_found("registration")
        return state

    def _authenticate(self, request: Request, scope: str, name: str, body: Json) -> tuple[Json, Json]:
        """The enrollment that the device has proven to be, and what the answer says of the proof. Else a Refusal."""
        if scope != self._id_scope:
            raise not_found("ID scope")
        enrollment = self._store.get("enrollment", name)
        if enrollment is None:
            return self._by_group(request, name)
        attestation = enrollment["attestation"]
        if attestation["type"] == "tpm":
            return enrollment, self._by_tpm(request, name, attestation["tpm"], body.get("tpm"))
        if attestation["type"] == "symmetricKey":
            self._check_either(request, name, _pair(attestation))
            return enrollment, {"symmetricKey": {}}
        leaf = _leaf(request)
        if hashlib.sha256(request.peer[0]).hexdigest().upper() not in thumbprints(enrollment):
            raise unauthorized("the client certificate is not the enrolled one")
        _check_common_name(leaf, name)
        return enrollment, {"x509": {"certificateInfo": certificate_info(leaf)}}

    def _by_group(self, request: Request, name: str) -> tuple[Json, Json]:
        if not request.peer:
            return self._by_group_key(request, name)
        leaf = _leaf(request)
        chain = {hashlib.sha256(der).hexdigest().upper(): der for der in request.peer[1:]}
        for group in self._store.all("group"):
            for print_ in thumbprints(group) & chain.keys():
                _check_common_name(leaf, name)
                issuer = x509.load_der_x509_certificate(chain[print_])
                return group, {
                    "x509": {
                        "enrollmentGroupId": group["enrollmentGroupId"],
                        "certificateInfo": certificate_info(leaf),
                        "signingCertificateInfo": certificate_info(issuer),
                    }
                }
        raise unauthorized("the client certificate's chain leads to no enrollment group")

    def _by_group_key(self, request: Request, name: str) -> tuple[Json, Json]:
        """A device whose key is derived from a group's, by its registration ID in lower case."""
        if request.headers.get("authorization") is None:
            raise not_found("enrollment")
        for group in self._store.all("group"):
            if group["attestation"]["type"] == "symmetricKey":
                derived = [hmac.digest(key, name.encode(), "sha256") for key in _pair(group["attestation"])]
                with contextlib.suppress(Refusal):
                    self._check_either(request, name, derived)
                    about = {"enrollmentGroupId": group["enrollmentGroupId"]}
                    return group, {"symmetricKey": about}
        raise unauthorized("the token is by no key of an enrollment group")

    def _check_either(self, request: Request, name: str, keys: list[bytes]) -> None:
        """Primary or secondary."""
        primary, secondary = keys
        try:
            self._check_sas(request, name, primary)
        except Refusal:
            self._check_sas(request, name, secondary)

    def _by_tpm(self, request: Request, name: str, enrolled: Json, given: object) -> Json:
        identity = self._store.get("identity", name)
        if request.headers.get("authorization") is not None and identity is not None:
            self._check_sas(request, name, base64.b64decode(identity["key"]))
            return {"tpm": {}}
        keys = given if isinstance(given, dict) else {}
        if keys.get("endorsementKey") != enrolled["endorsementKey"]:
            raise unauthorized("the endorsement key is not the enrolled one")
        try:
            ek = storage_key(base64.b64decode(enrolled["endorsementKey"]))
            srk = storage_key(base64.b64decode(str(keys.get("storageRootKey")), validate=True))
        except (ValueError, binascii.Error) as error:
            raise bad_request(f"storageRootKey is not a TPM2B_PUBLIC in base64: {error}") from error
        key = secrets.token_bytes(IDENTITY_KEY)
        with self._store.transaction():
            self._store.put("identity", name, {"key": base64.b64encode(key).decode()})
        blob = challenge(ek, srk, key, name.encode())
        raise unauthorized(
            "Authorization required", authenticationKey=base64.b64encode(blob).decode(), keyName=POLICY
        )

    def _check_sas(self, request: Request, name: str, key: bytes) -> None:
        resource = f"{self._id_scope}/registrations/{name}"
        sas.check(request.headers.get("authorization"), {resource}, POLICY, key, self._weather.now())


def _pair(attestation: Json) -> list[bytes]:
    keys = attestation["symmetricKey"]
    return [base64.b64decode(keys[name]) for name in ("primaryKey", "secondaryKey")]


def _leaf(request: Request) -> x509.Certificate:
    if not request.peer:
        raise unauthorized("a TLS client certificate is needed")
    return x509.load_der_x509_certificate(request.peer[0])


def _check_common_name(leaf: x509.Certificate, name: str) -> None:
    names = [
        str(found.value).lower() for found in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    ]
    if names != [name]:
        raise unauthorized("the client certificate's common name is not the registration ID")


def _shown(state: Json) -> Json:
    return {
        key: value for key, value in state.items() if key not in ("group", "operation") and value is not None
    }
