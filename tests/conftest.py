"""Shared fixtures, by room. Each room's are in `tests/fixtures_ROOM.py`."""

pytest_plugins = [
    "tests.fixtures_smp",
    "tests.fixtures_board",
    "tests.fixtures_status",
    "tests.fixtures_signer",
    "tests.fixtures_tpm",
]
