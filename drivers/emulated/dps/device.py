"""A field device: registers at DPS with its TPM as the C and C# clients do, and says to which hub it was assigned.

It uses what it finds in the TPM (EK 0x81010001, SRK 0x81000001) with empty owner and endorsement auth, and persists its
identity key at 0x81000100. It proves that a provisioned board works in the field; the station never uses it.
`python -m drivers.emulated.dps.device --help`
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_SE
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPML_HANDLE,
    TPMS_CAPABILITY_DATA,
    TPMT_SYM_DEF,
    TPMT_SYM_DEF_OBJECT,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

EK_HANDLE: Final = 0x81010001
SRK_HANDLE: Final = 0x81000001
IDENTITY_HANDLE: Final = 0x81000100
"""Where the clients keep their identity key (azure-iot-sdk-c, hsm_client_tpm.c)."""
API_VERSION: Final = "2021-10-01"
TOKEN_SECONDS: Final = 3600
ANSWER_LIMIT: Final = 1 << 16
POLLS: Final = 30


class RegistrationFailed(Exception):
    """The service or the TPM did not play along; the text says which."""


@dataclass(frozen=True, slots=True)
class Assigned:
    registration_id: str
    device_id: str
    hub: str


class FieldTpm:
    """The board's TPM as a DPS client sees it."""

    def __init__(self, esapi: ESAPI) -> None:
        self._esapi = esapi

    def public(self, handle: int) -> bytes:
        """TPM2B_PUBLIC of a persistent object, big-endian with its size."""
        with self._object(handle) as found:
            area, _name, _qualified = self._esapi.read_public(found)
            return bytes(area.marshal())

    def activate(self, blob: bytes) -> None:
        """Opens the service's challenge with the EK, and persists the key inside of it as the identity key."""
        id_object, used = TPM2B_ID_OBJECT.unmarshal(blob)
        secret, step = TPM2B_ENCRYPTED_SECRET.unmarshal(blob[used:])
        used += step
        duplicate, step = TPM2B_PRIVATE.unmarshal(blob[used:])
        used += step
        wrap_secret, step = TPM2B_ENCRYPTED_SECRET.unmarshal(blob[used:])
        used += step
        public, step = TPM2B_PUBLIC.unmarshal(blob[used:])
        used += step
        if len(blob) < used + 2 or len(blob) != used + 2 + int.from_bytes(blob[used : used + 2]):
            message = "the challenge has not the length that it says"
            raise RegistrationFailed(message)
        with self._object(EK_HANDLE) as ek, self._object(SRK_HANDLE) as srk:
            with self._endorsement_session() as session:
                inner_key = self._esapi.activate_credential(srk, ek, id_object, secret, session2=session)
            private = self._esapi.import_(
                srk, TPM2B_DATA(bytes(inner_key)), public, duplicate, wrap_secret, _aes_128_cfb()
            )
            key = self._esapi.load(srk, private, public)
        try:
            self._forget_identity()
            # OWNER with an empty auth, as the field clients do: with an owner auth set this is where they fail.
            persistent = self._esapi.evict_control(ESYS_TR.OWNER, key, IDENTITY_HANDLE)
            self._esapi.tr_close(persistent)
        finally:
            self._esapi.flush_context(key)

    def sign(self, data: bytes) -> bytes:
        """HMAC-SHA256 by the identity key, inside of the TPM. At most 1024 octets."""
        with self._object(IDENTITY_HANDLE) as key:
            return bytes(self._esapi.hmac(key, data, TPM2_ALG.SHA256))

    def _forget_identity(self) -> None:
        # Each parent is bound to a variable: a chained access reads freed memory in tpm2-pytss 3.0.0.
        answer = self._esapi.get_capability(TPM2_CAP.HANDLES, IDENTITY_HANDLE, 1)
        capability: TPMS_CAPABILITY_DATA = answer[1]
        data = capability.data
        handles: TPML_HANDLE = data.handles
        if int(handles.count) and int(handles.handle[0]) == IDENTITY_HANDLE:
            with self._object(IDENTITY_HANDLE) as old:
                self._esapi.evict_control(ESYS_TR.OWNER, old, IDENTITY_HANDLE)

    @contextmanager
    def _object(self, handle: int) -> Iterator[ESYS_TR]:
        found = self._esapi.tr_from_tpmpublic(handle)
        try:
            yield found
        finally:
            self._esapi.tr_close(found)

    @contextmanager
    def _endorsement_session(self) -> Iterator[ESYS_TR]:
        session = self._esapi.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
        )
        try:
            self._esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
            yield session
        finally:
            self._esapi.flush_context(session)


def _aes_128_cfb() -> TPMT_SYM_DEF_OBJECT:
    return TPMT_SYM_DEF_OBJECT(
        algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
    )


def registration_id(ek: bytes) -> str:
    """The SDKs' convention: lower-case base32 without padding of SHA-256 over TPM2B_PUBLIC."""
    return base64.b32encode(hashlib.sha256(ek).digest()).decode().lower().rstrip("=")


def register(
    esapi: ESAPI, endpoint: str, id_scope: str, name: str | None = None, trust: str | None = None
) -> Assigned:
    """The whole exchange: challenge, activation, signed request, polling. RegistrationFailed says what went wrong."""
    tpm = FieldTpm(esapi)
    ek = tpm.public(EK_HANDLE)
    name = name or registration_id(ek)
    keys = {
        "endorsementKey": base64.b64encode(ek).decode(),
        "storageRootKey": base64.b64encode(tpm.public(SRK_HANDLE)).decode(),
    }
    cloud = Cloud(endpoint, trust)
    path = f"/{quote(id_scope, safe='')}/registrations/{quote(name, safe='')}"
    body = {"registrationId": name, "tpm": keys}
    status, challenge = cloud.ask("PUT", f"{path}/register", body)
    if status != http.client.UNAUTHORIZED or "authenticationKey" not in challenge:
        message = f"no challenge: {status} {challenge.get('message')!r}"
        raise RegistrationFailed(message)
    tpm.activate(base64.b64decode(challenge["authenticationKey"], validate=True))
    resource = f"{id_scope}/registrations/{name}"
    expiry = str(int(time.time()) + TOKEN_SECONDS)
    signature = tpm.sign(f"{quote(resource, safe='')}\n{expiry}".encode())
    fields = {
        "sr": resource,
        "sig": base64.b64encode(signature).decode(),
        "se": expiry,
        "skn": "registration",
    }
    token = "SharedAccessSignature " + urlencode(fields, quote_via=quote, safe="")
    status, operation = cloud.ask("PUT", f"{path}/register", body, token)
    return assigned(cloud, path, status, operation, token)


def assigned(cloud: Cloud, path: str, status: int, operation: dict[str, Any], token: str) -> Assigned:
    """Polls an accepted registration to its end. RegistrationFailed says what went wrong."""
    for _ in range(POLLS):
        if operation.get("status") != "assigning":
            break
        status, operation = cloud.ask("GET", f"{path}/operations/{operation['operationId']}", None, token)
    state = operation.get("registrationState", {})
    if status != http.client.OK or operation.get("status") != "assigned":
        message = f"not assigned: {status} {operation.get('message') or operation.get('status')!r}"
        raise RegistrationFailed(message)
    return Assigned(state["registrationId"], state["deviceId"], state["assignedHub"])


class Cloud:
    """The device API over HTTP."""

    def __init__(self, endpoint: str, trust: str | None) -> None:
        self._url, self._trust = urlsplit(endpoint), trust

    def ask(
        self, method: str, path: str, body: object, token: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        host = self._url.netloc
        connection = (
            http.client.HTTPSConnection(
                host, timeout=30, context=ssl.create_default_context(cafile=self._trust)
            )
            if self._url.scheme == "https"
            else http.client.HTTPConnection(host, timeout=30)
        )
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = token
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, f"{path}?api-version={API_VERSION}", content, headers)
            response = connection.getresponse()
            found = json.loads(response.read(ANSWER_LIMIT))
        except (OSError, ValueError, http.client.HTTPException) as error:
            message = f"the service does not answer well: {error}"
            raise RegistrationFailed(message) from error
        finally:
            connection.close()
        return response.status, found if isinstance(found, dict) else {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m drivers.emulated.dps.device", description=__doc__)
    parser.add_argument("--tcti", required=True, help="e.g. swtpm:path=/run/x.sock or device:/dev/tpmrm0")
    parser.add_argument(
        "--endpoint", required=True, help="https://global.azure-devices-provisioning.net, or an emulator"
    )
    parser.add_argument("--id-scope", required=True)
    parser.add_argument("--registration-id", help="default: base32 of the EK's SHA-256, as the SDKs do")
    parser.add_argument("--trust", help="PEM file of roots, for an emulator with TLS")
    options = parser.parse_args()
    try:
        with ESAPI(options.tcti) as esapi:
            found = register(
                esapi, options.endpoint, options.id_scope, options.registration_id, options.trust
            )
    except (RegistrationFailed, TSS2_Exception) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        json.dumps(
            {"registrationId": found.registration_id, "deviceId": found.device_id, "assignedHub": found.hub}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
