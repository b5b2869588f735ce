"""Shared fixtures, by room. Each room's are in `tests/fixtures_ROOM.py`."""

import os

from hypothesis import settings

# No deadline for one example: the machine that runs the tests may be busy, and slowness is the bench's business.
settings.register_profile("default", deadline=None)
settings.register_profile("fuzz", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

pytest_plugins = [
    "tests.fixtures_smp",
    "tests.fixtures_board",
    "tests.fixtures_status",
    "tests.fixtures_store",
    "tests.fixtures_signer",
    "tests.fixtures_tpm",
    "tests.fixtures_dps",
    "tests.fixtures_crash",
    "tests.fixtures_sources",
    "tests.fixtures_config",
]
