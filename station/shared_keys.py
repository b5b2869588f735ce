"""Finds what would give several units one key: a secret that stands in a recipe goes to every board of the SKU.

It looks at names and at the forms that keys have. It can't know every secret; what it finds is refused with the reason.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

NAMED: Final = re.compile(
    r"(?:^|[/_-])(?:keys?|secret|psk|passw(?:or)?d|passphrase|token|sas|credentials?|connection-?string)"
    r"(?=$|[/_-])"
)
"""Words in a setting's name that say that its value is a secret."""
PUBLIC: Final = re.compile(
    r"(?:^|[/_-])(?:public|digest|sha256|fingerprint|thumbprint|id|name|url|label)(?=$|[/_-])"
)
"""Words that say that it isn't one."""
TEXTS: Final = ("PRIVATE KEY-----", "SharedAccessKey=", "SharedAccessSignature ")
KEY_LENGTHS: Final = frozenset({16, 20, 24, 32, 48, 64})
"""Octets that symmetric keys have."""


def why_shared(name: str, value: str) -> str | None:
    """Why the setting `name` = `value` would be a key that all units share, or None. Never quotes the value."""
    found = None
    if any(text in value for text in TEXTS):
        found = "its value is a key or an access signature"
    elif not PUBLIC.search(name):
        if NAMED.search(name):
            found = "its name says that its value is a secret"
        elif looks_like_key(value):
            found = "its value has the form of a key"
    if found is None:
        return None
    return (
        f"{name} is refused: {found}, and one and the same would go to every unit; whoever opens one board could then"
        " be any of them. Give each unit its own by the step symmetric-key; if it is no secret, name it ...-public or"
        " ...-sha256"
    )


def looks_like_key(value: str) -> bool:
    """16 to 64 octets in hex or base64 that are not plain words: both cases and digits, or padding."""
    if re.fullmatch(r"(?:[0-9a-f]+|[0-9A-F]+)", value) and len(value) % 2 == 0:
        return len(value) // 2 in KEY_LENGTHS and not value.isdigit()
    try:
        octets = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False
    kinds = (r"[a-z]", r"[A-Z]", r"[0-9+/=]")
    return len(octets) in KEY_LENGTHS and all(re.search(kind, value) for kind in kinds)
