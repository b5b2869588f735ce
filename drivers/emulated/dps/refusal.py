"""How the emulated service says no: an HTTP status and the official error body."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass
class Refusal(Exception):
    """`number` is the last three digits of errorCode = status x 1000 + number. `extra` goes into the body."""

    status: int
    message: str
    number: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> int:
        return self.status * 1000 + self.number

    def body(self, now: datetime) -> dict[str, Any]:
        return {
            "errorCode": self.code,
            "trackingId": secrets.token_hex(16),
            "message": self.message,
            "timestampUtc": now.isoformat(),
            **self.extra,
        }


def bad_request(message: str, number: int = 4) -> Refusal:
    """400004 is what the real service answers to most malformed records (azure-iot-sdk-c#1502)."""
    return Refusal(400, message, number)


def not_found(what: str) -> Refusal:
    return Refusal(404, f"{what} not found", 201)


def unauthorized(message: str, **extra: str) -> Refusal:
    return Refusal(401, message, 2, extra=extra)
