"""Rows 15 and 22: vendors' lists of EKs reconciled with each unit's EK, and the station's own list for customers."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hal.errors import EkUntrusted
from hal.interfaces import EndorsementIdentity
from hal.types import EndorsementKey
from station.cli import main
from station.signed import load_private_key, write_signed
from station.store import Store
from station.trust.ek_list import FORMAT
from station.trust.judge import Judge
from station.trust.trust_set import Origin, TrustSet
from tests.fixtures_tpm import Recorder, lasting
from tests.store_parts import BOOT, SKU, enrollment
from tests.trust_parts import NOW, key_pair, policy

STATION = '[station]\nname = "line-1"\nmode = "bench"\ndrivers = ["pkcs11"]\n'


class Factory:
    """A station's folder, with whoever signs lists; commands as a person gives them."""

    def __init__(self, folder: Path, say: Callable[[], str]) -> None:
        self.root, self._say = folder / "root", say
        etc = self.root / "etc/hallmark"
        etc.mkdir(parents=True)
        (etc / "station.toml").write_text(STATION)
        (self.root / "var/lib/hallmark/station").mkdir(parents=True)
        self.key = key_pair(folder, "vendor", etc / "trust/ek-list-signers")
        self.database = self.root / "var/lib/hallmark/station/station.db"

    def hallmark(self, *words: object) -> tuple[int, str]:
        code = main(["--root", str(self.root), *map(str, words)])
        return code, self._say()

    def made(self, ek: EndorsementKey) -> None:
        """A unit with this EK passes."""
        with Store.open(self.database, ballast=4096) as store:
            visit = store.open_visit("A", "usb:1-1", SKU, "final", b"\1" * 32, BOOT)
            facts: dict[str, Any] = {"ek_public": ek.public, "ek_certificate": ek.certificate}
            store.done(visit, "tpm-identity", "endorsement-key", facts)
            judge = Judge(lambda: TrustSet(Origin("none")), store.ek_listed)
            verdict = judge.judge(policy("list"), ek.public, ek.certificate, ())
            store.record_verdict(visit, ek.name, verdict)
            store.join(visit, "ek-name", ek.name.hex(), "board-1", [])
            store.finish(visit, "enroll", "queue", {}, enrollment(1), ["dps"], b"archive")


@pytest.fixture
def factory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Factory:
    def said() -> str:
        captured = capsys.readouterr()
        return captured.out + captured.err

    return Factory(tmp_path, said)


def vendors_list(path: Path, key: Path, eks: list[EndorsementKey], lot: str) -> Path:
    header = {"format": FORMAT, "lot": lot, "vendor": "swtpm", "created": NOW.isoformat(), "count": len(eks)}
    lines = [{"ek_public": base64.b64encode(ek.public).decode()} for ek in eks]
    write_signed(
        path, b"".join(msgspec.json.encode(item) + b"\n" for item in (header, *lines)), load_private_key(key)
    )
    return path


def test_row_15_vendor_lists_are_imported_and_each_units_ek_is_reconciled_with_them(
    factory: Factory, line: Recorder, tmp_path: Path
) -> None:
    """Two EKs of a real TPM: one is in the vendor's list and passes, the other is refused; the lot is reconciled."""
    with line.visit() as board:
        identity = board.get(EndorsementIdentity)
        identity.derive(lasting(), "L-1")
        keys = {key.template: key for key in identity.derive(lasting(), "L-2").keys}
    ours, other = keys["L-1"], keys["L-2"]
    path = vendors_list(tmp_path / "lot.jsonl", factory.key, [ours], "lot-1")
    code, said = factory.hallmark("ek-list", "import", path)
    assert code == 0, said
    factory.made(ours)
    with pytest.raises(EkUntrusted, match="in no vendor's list"):
        factory.made(other)
    code, said = factory.hallmark("ek-list", "check", "lot-1", "--json")
    found = json.loads(said)
    assert code == 0
    assert (found["listed"], found["seen"], found["not_seen"], found["in_no_list"]) == (1, 1, 0, 0)
    with Store.open(factory.database, readonly=True) as store:
        record = store.unit("board-1")
    assert record is not None
    assert record.ek_verdict is not None
    assert (record.ek_verdict.trust, record.ek_verdict.lot) == ("list", "lot-1")


def test_row_22_the_eks_of_the_units_made_go_to_customers_as_a_signed_list(
    factory: Factory, ek: EndorsementKey, tmp_path: Path
) -> None:
    factory.hallmark(
        "ek-list", "import", vendors_list(tmp_path / "in.jsonl", factory.key, [ek], "from-maker")
    )
    factory.made(ek)
    own, out = key_pair(tmp_path, "line-1", tmp_path / "ours"), tmp_path / "out.jsonl"
    code, said = factory.hallmark("ek-list", "export", out, "--lot", "2026-W47", "--key", own, "--sku", SKU)
    assert code == 0, said
    checked = subprocess.run(
        [
            *(
                "openssl",
                "pkeyutl",
                "-verify",
                "-pubin",
                "-inkey",
                str(tmp_path / "ours/line-1.pem"),
                "-rawin",
            ),
            *("-in", str(out), "-sigfile", f"{out}.sig"),
        ],
        check=False,
        capture_output=True,
    )
    assert checked.returncode == 0, checked.stderr
    header, entry = (json.loads(row) for row in out.read_text().splitlines())
    assert (header["lot"], header["vendor"], header["count"]) == ("2026-W47", "line-1", 1)
    assert base64.b64decode(entry["ek_public"]) == ek.public
    customer = factory.root / "etc/hallmark/trust/ek-list-signers/line-1.pem"
    customer.write_bytes((tmp_path / "ours/line-1.pem").read_bytes())
    assert factory.hallmark("ek-list", "import", out)[0] == 0
    assert "2026-W47" in factory.hallmark("ek-list", "list")[1]
