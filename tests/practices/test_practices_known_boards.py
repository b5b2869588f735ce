"""Row 18: a known board with another EK is another device; nobody enrolls it twice by accident."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hal.errors import IdentityConflict
from station import cli
from station.paths import Paths
from station.store import Store
from tests import store_parts as parts


def test_row_18_a_known_board_with_another_ek_asks_a_person_and_is_never_enrolled_twice(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    paths = Paths(tmp_path)
    paths.state.mkdir(parents=True)
    with Store.open(paths.database, ballast=4096) as store:
        parts.trip(store, 1)
        with pytest.raises(IdentityConflict, match="another EK"):
            parts.join(store, parts.plug(store), 2, parts.claims(1))
        assert store.lease("dps", 10, "uploader") == []
    root = ["--root", str(tmp_path)]
    assert cli.main([*root, "decisions", "--json"]) == 1
    asked = json.loads(capsysbinary.readouterr().out)
    answer = ["decisions", "answer", str(asked["id"]), "replaced", "--reason", "TPM replaced in rework"]
    assert cli.main([*root, *answer]) == 0
    assert cli.main([*root, "decisions"]) == 0
    assert cli.main([*root, "units", "board-1"]) == 0
    assert b"retired" in capsysbinary.readouterr().out
    with Store.open(paths.database, ballast=4096) as store:
        assert parts.join(store, parts.plug(store), 2, parts.claims(1)).returning
        assert store.lease("dps", 10, "uploader") == []
