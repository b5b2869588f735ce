"""One request and one answer, as the API rooms see them: parsed, bounded, no sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from drivers.emulated.dps.refusal import Refusal, bad_request

API_VERSIONS: Final = {"2021-10-01", "2019-03-31"}


@dataclass(frozen=True, slots=True)
class Request:
    """`path`: decoded segments. `headers`: lower-case names. `peer`: the TLS client's verified chain, DER."""

    method: str
    path: tuple[str, ...]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    peer: tuple[bytes, ...] = ()

    def json(self) -> Any:
        if not self.headers.get("content-type", "").lower().startswith("application/json"):
            raise Refusal(415, "the body has to be application/json")
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise bad_request("the body is not JSON") from error

    def check_version(self) -> None:
        if self.query.get("api-version") not in API_VERSIONS:
            raise bad_request("api-version is missing or not supported", 1)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
