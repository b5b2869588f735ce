"""A value that must not be seen: it hides from repr, str, format, pickling and comparison by `==` timing."""

from __future__ import annotations

import hmac
import secrets
from typing import Final, NoReturn

AUTH_LENGTH: Final = 32
"""Octets of a random TPM auth value: the digest size of the SHA-256 name algorithm, the most that TPMs take."""


class Secret:
    """Octets that only `reveal` gives out, so that a search for that word finds every place where they leave."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    @classmethod
    def random(cls, length: int = AUTH_LENGTH) -> Secret:
        return cls(secrets.token_bytes(length))

    def reveal(self) -> bytes:
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        message = "a Secret is not pickled"
        raise TypeError(message)


EMPTY: Final = Secret(b"")
"""The auth value that a fresh TPM's hierarchies have."""
