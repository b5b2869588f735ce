"""Shared access signatures of Azure IoT: a token that a key holder makes for one host and a short time.

`SharedAccessSignature sr=...&sig=...&se=...&skn=...`, sig = base64(HMAC-SHA256(key, sr + newline + se)), each
part URL-encoded (Azure DPS documentation, "Control access to DPS"). Nothing here keeps a token or a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final
from urllib.parse import quote, urlencode

from hal.errors import ConfigError
from hal.secret import Secret

LIFETIME: Final = 3600
"""Seconds. Each try makes a token of its own; an hour forgives a clock that is some minutes slow."""


def token(host: str, policy: str, key: Secret, now: float) -> str:
    """A token for `host` (no scheme, no path) under the shared access policy `policy`.

    `key` is the policy's key as Azure shows it, base64, surrounding white space allowed; ConfigError when it isn't.
    `now` is Unix time in seconds.
    """
    resource = quote(host, safe="")
    expiry = str(int(now) + LIFETIME)
    try:
        raw = base64.b64decode(key.reveal().strip(), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw:
        # Neither the value nor the decoder's remark on it may get into a message.
        message = "the credential of the DPS sink is not a base64 key"
        raise ConfigError(
            message, hint="Store the policy's primary or secondary key as Azure shows it."
        ) from None
    signature = hmac.new(raw, f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    fields = {"sr": host, "sig": base64.b64encode(signature).decode(), "se": expiry, "skn": policy}
    return "SharedAccessSignature " + urlencode(fields, quote_via=quote, safe="")
