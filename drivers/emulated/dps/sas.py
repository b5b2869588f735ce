"""Checks shared access signatures as the service does: resource, policy, expiry, HMAC."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection
from datetime import datetime
from urllib.parse import parse_qs

from drivers.emulated.dps.refusal import unauthorized

PREFIX = "SharedAccessSignature "


def check(header: str | None, resources: Collection[str], policy: str, key: bytes, now: datetime) -> None:
    """Raises a 401 unless `header` is a token for one of `resources` under `policy`, signed by `key`, not expired."""
    if header is None or not header.startswith(PREFIX):
        raise unauthorized("Authorization header is missing or is no SharedAccessSignature")
    parts = header.removeprefix(PREFIX)
    try:
        parsed = parse_qs(parts, max_num_fields=8)
    except ValueError as error:
        raise unauthorized("the token has too many fields") from error
    fields = {name: values[0] for name, values in parsed.items() if len(values) == 1}
    # The signature covers `sr` as it was sent, encoded.
    sent = dict(part.split("=", 1) for part in parts.split("&") if "=" in part)
    if not set(fields) == set(sent) == {"sr", "sig", "se", "skn"}:
        raise unauthorized("the token needs sr, sig, se and skn, each once")
    if fields["sr"] not in resources:
        raise unauthorized("the token is for another resource")
    if fields["skn"] != policy:
        raise unauthorized("the token names another policy")
    expiry = fields["se"]
    if not (expiry.isascii() and expiry.isdigit() and len(expiry) < 20) or int(expiry) <= now.timestamp():
        raise unauthorized("the token has expired")
    wanted = hmac.new(key, f"{sent['sr']}\n{expiry}".encode(), hashlib.sha256).digest()
    try:
        signature = base64.b64decode(fields["sig"], validate=True)
    except (ValueError, binascii.Error) as error:
        raise unauthorized("the token's signature is not base64") from error
    if not hmac.compare_digest(wanted, signature):
        raise unauthorized("the token's signature does not match")
