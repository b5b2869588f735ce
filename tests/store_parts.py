"""Boards, certificates and trips for the store's tests: what a nest would do, in few words."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import apsw
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from station import messages
from station.store import Store

BOOT: Final = "3f2b1c00-0000-4000-8000-000000000000"
SKU: Final = "gw-200"


def ek_name(board: int) -> bytes:
    """A TPM Name: SHA-256's algorithm ID and a digest."""
    return bytes.fromhex("000b") + hashlib.sha256(b"ek %d" % board).digest()


def plug(store: Store, nest: str = "A", sku: str = SKU) -> str:
    return store.open_visit(nest, f"usb:1-1.{nest}", sku, "final", b"\1" * 32, BOOT)


def claims(board: int) -> list[tuple[str, str]]:
    return [("serial", f"SN-{board}"), ("mac", f"02:00:00:00:00:{board:02x}")]


def join(
    store: Store, visit: str, board: int, claimed: Sequence[tuple[str, str]] | None = None
) -> messages.Unit:
    given = claims(board) if claimed is None else claimed
    return store.join(visit, "ek-name", ek_name(board).hex(), f"board-{board}", given)


def enrollment(board: int, text: str = "") -> bytes:
    return b'{"registration_id":"board-%d","text":"%s"}' % (board, text.encode())


def trip(store: Store, board: int, nest: str = "A", sinks: Sequence[str] = ("dps",)) -> messages.Unit:
    """A whole trip to PASS."""
    visit = plug(store, nest)
    store.begin(visit, "flash", "write")
    store.done(visit, "flash", "write", {"version": "1.4.2"})
    unit = join(store, visit, board)
    store.begin(visit, "tpm-ownership", "protect")
    if not unit.escrowed:
        generation = store.next_generation(ek_name(board))
        store.protect(visit, ek_name(board), ["owner", "lockout"], b"sealed", b"wrapped", generation)
    store.done(visit, "tpm-ownership", "protect", {"auths": ["lockout", "owner"]})
    store.record_certificate(visit, "idevid-p256", chain(board))
    store.finish(visit, "enroll", "queue", {}, enrollment(board), sinks, b"archive %d" % board)
    return unit


@functools.cache
def _key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(1 + number, ec.SECP256R1())


@functools.cache
def _leaf(key: int, serial: int) -> bytes:
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"board-{key}")])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench CA")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(_key(key).public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=3650))
    )
    return builder.sign(_key(10_000), hashes.SHA256()).public_bytes(Encoding.DER)


def chain(key: int, serial: int | None = None) -> list[bytes]:
    """A leaf for key number `key`, and something in the issuer's place."""
    return [_leaf(key, 1000 + key if serial is None else serial), b"\x30\x03issuer"]


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What the database holds, read past the store's own code.

    By apsw, not Python's sqlite3: a second SQLite in one process drops the first one's POSIX locks when it
    closes the file (sqlite.org/howtocorrupt.html, 2.2.1).
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(connection.execute(query))
    finally:
        connection.close()


HALVES: Final = """
SELECT 'passed without enrollment', unit FROM units WHERE passed IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.unit = units.unit AND kind = 'enrollment')
UNION ALL SELECT 'passed without archive', unit FROM units WHERE passed IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.unit = units.unit AND kind = 'archive')
UNION ALL SELECT 'passed without a visit that says so', unit FROM units WHERE passed IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM visits WHERE visits.unit = units.unit AND outcome = 'PASS')
UNION ALL SELECT 'enrollment of a unit that did not pass', unit FROM outbox JOIN units USING (unit)
   WHERE passed IS NULL
UNION ALL SELECT 'passed, and a copy for resume is left', unit
    FROM resume_copies JOIN escrows USING (ek_name, generation) JOIN units USING (unit) WHERE passed IS NOT NULL
UNION ALL SELECT 'passed, but not counted', unit FROM units WHERE passed IS NOT NULL AND work_order IS NULL
    AND EXISTS (SELECT 1 FROM work_orders)
UNION ALL SELECT 'order and units disagree', id FROM work_orders
   WHERE passed <> (SELECT count(*) FROM units WHERE work_order = work_orders.id)
UNION ALL SELECT 'joined unit without identifier', unit FROM units
   WHERE NOT EXISTS (SELECT 1 FROM identifiers WHERE identifiers.unit = units.unit AND strong = 1)
UNION ALL SELECT 'escrow without its event', hex(ek_name) FROM escrows
   WHERE NOT EXISTS (SELECT 1 FROM audit WHERE audit.unit = escrows.unit AND kind = 'protected')
UNION ALL SELECT 'depth is wrong', state FROM outbox_depth
   WHERE rows <> (SELECT count(*) FROM outbox WHERE (outbox.kind, outbox.sink, outbox.state)
         = (outbox_depth.kind, outbox_depth.sink, outbox_depth.state))
"""
"""Gives a row for each transaction that happened only in part."""
