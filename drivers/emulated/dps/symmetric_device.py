"""A field device with a symmetric key: registers at DPS as the SDKs do, and says to which hub it was assigned.

It knows its own key only; nothing of groups, stations or tokens comes in here.
"""

from __future__ import annotations

import base64
import hmac
import time
from typing import Final
from urllib.parse import quote, urlencode

from drivers.emulated.dps.device import TOKEN_SECONDS, Assigned, Cloud, assigned

POLICY: Final = "registration"


def sas(resource: str, key: bytes, expiry: int) -> str:
    """The token of a device: HMAC-SHA256 over the encoded resource, a line feed, and the expiry."""
    signature = hmac.digest(key, f"{quote(resource, safe='')}\n{expiry}".encode(), "sha256")
    fields = {
        "sr": resource,
        "sig": base64.b64encode(signature).decode(),
        "se": str(expiry),
        "skn": POLICY,
    }
    return "SharedAccessSignature " + urlencode(fields, quote_via=quote, safe="")


def register(endpoint: str, id_scope: str, name: str, key: bytes, trust: str | None = None) -> Assigned:
    """The whole exchange: signed request, polling. RegistrationFailed says what went wrong."""
    cloud = Cloud(endpoint, trust)
    path = f"/{quote(id_scope, safe='')}/registrations/{quote(name, safe='')}"
    token = sas(f"{id_scope}/registrations/{name}", key, int(time.time()) + TOKEN_SECONDS)
    status, operation = cloud.ask("PUT", f"{path}/register", {"registrationId": name}, token)
    return assigned(cloud, path, status, operation, token)
