"""Work orders for tests: whoever plans production, with a key of their own."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from station.signed import load_private_key, sign
from station.work_order import FORMAT
from tests.fixtures_config import write_key

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
RECIPE = b"\1" * 32


@dataclass(frozen=True)
class Planner:
    """Signs orders with `office`/planner.key; its public part is `office`/planner.pem."""

    office: Path

    def __post_init__(self) -> None:
        if not (self.office / "planner.key").exists():
            write_key(self.office / "planner.key")

    @property
    def public(self) -> Path:
        return self.office / "planner.pem"

    def order(self, **changed: Any) -> tuple[bytes, bytes]:
        """An order's octets and signature."""
        data = order_data(**changed)
        return data, sign(data, load_private_key(self.office / "planner.key"))

    def write(self, **changed: Any) -> Path:
        """The same as FILE and FILE.sig."""
        data, signature = self.order(**changed)
        path = self.office / f"{json.loads(data)['id']}.json"
        path.write_bytes(data)
        path.with_name(path.name + ".sig").write_bytes(signature)
        return path


def plain(**changed: Any) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "id": "WO-17",
        "sku": "gw-200",
        "quantity": 3,
        "stations": ["line-1"],
        "recipes": [RECIPE.hex()],
        "from": "2026-01-01T00:00:00Z",
        "until": "2026-12-31T00:00:00Z",
    } | changed


def order_data(**changed: Any) -> bytes:
    return json.dumps(plain(**changed)).encode()
