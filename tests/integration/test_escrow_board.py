"""The drill on a board, over its port (`hallmark escrow drill --port`), and every octet that crossed the port."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from drivers.emulated.board.recording import Direction, octets
from hal.driver import in_order, opened
from hal.interfaces import EndorsementIdentity, Ownership
from hal.registry import load
from hal.secret import EMPTY, Secret
from hal.types import Hierarchy, Sighting, SrkTemplate
from station import cli
from station.config import as_settings
from station.escrow import EscrowRecord, seal
from tests.fixtures_board import Boards
from tests.fixtures_tpm import lasting
from tests.integration.test_escrow_cms import NEW_KEYS, make_officer

NAMES = ["serial", "smp-serial", "tcti-tunnel"]
CHUNK = 12
"""Characters of base64 that are looked for: SMP's lines cut what is longer."""


def forms(value: bytes) -> list[bytes]:
    """What of a value could stand in the port's octets: itself, hexadecimal, and base64 at each alignment."""
    found = [value[:8], value[8:16], value.hex().encode()[:24], value.hex().upper().encode()[:24]]
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + value)[4:-4]
        found += [text[at : at + CHUNK] for at in range(0, len(text) - CHUNK, CHUNK)]
    return found


def test_a_drill_over_the_boards_port_holds_and_no_value_crosses_it_in_clear(
    boards: Boards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record"
    board = boards.start(record=record)
    registry, port = load(NAMES), str(board.port)
    known: dict[type, object] = {Sighting: Sighting(port, port)}
    plan = [
        (role, driver, as_settings(driver, {}))
        for role, driver in in_order({name: registry.get(name) for name in NAMES}, frozenset(known))
    ]
    auths = {hierarchy: Secret.random() for hierarchy in Hierarchy}
    with opened(plan, known) as device:
        ek = device.get(EndorsementIdentity).endorsements(lasting()).keys[0]
        ownership = device.get(Ownership)
        ownership.make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        for hierarchy, auth in auths.items():
            ownership.set_auth(lasting(), ek, hierarchy, auth, EMPTY)
    sealed = EscrowRecord(ek.name, "u", "s", 1, {item.value: auth for item, auth in auths.items()})
    officer = make_officer(tmp_path, "officer", NEW_KEYS["p256"]())
    (tmp_path / "escrow.p7m").write_bytes(seal([officer], sealed))
    words = ["drill", str(tmp_path / "escrow.p7m"), "--key", str(tmp_path / "officer.key"), "--port", port]
    assert cli.main(["escrow", *words, "--json"]) == 0
    proven = json.loads(capsys.readouterr().out)["proven"]
    assert proven == {"owner": True, "endorsement": True, "lockout": True}
    crossed = octets(record, Direction.TO_BOARD) + octets(record, Direction.TO_HOST)
    assert any(form in crossed for form in forms(ek.public[100:132])), "this search finds what is there"
    for auth in auths.values():
        for form in forms(auth.reveal()):
            assert form not in crossed
