"""A store in a folder of its own, closed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from station.store import Store


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "station.db"


@pytest.fixture
def store(store_path: Path) -> Iterator[Store]:
    with Store.open(store_path, ballast=4096) as found:
        yield found
