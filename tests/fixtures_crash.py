"""One line of the crash campaign for the tests of it: processes with taps, and what one good unit left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.campaign import Campaign


@pytest.fixture(scope="session")
def campaign() -> Iterator[Campaign]:
    # Not below pytest's folder: paths of unix sockets are short.
    with tempfile.TemporaryDirectory(prefix="hm-") as folder, Campaign(Path(folder) / "1") as line:
        yield line
