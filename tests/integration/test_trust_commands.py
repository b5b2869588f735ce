"""`hallmark trust` and `ek-list` from an engineer's desk to the station, as a person gives the commands."""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from station.cli import main
from station.signed import load_private_key, load_signers, write_signed
from station.status.server import StatusServer
from station.store import Store
from station.trust.ek_list import FORMAT
from station.trust.intake import Intake
from tests.fixtures_status import GROUPS, FakeControl
from tests.trust_parts import DAY, NOW, Maker, ek_public, key_pair, rsa_key

ROOT, MIDDLE = Maker("maker root"), Maker("maker intermediate")
ROOT_DER, MIDDLE_DER = ROOT.ca(ROOT), ROOT.ca(MIDDLE)


class Desk:
    def __init__(self, folder: Path, say: Callable[[], str]) -> None:
        self.folder, self.root, self._say = folder, folder / "r", say
        etc = self.root / "etc/hallmark"
        etc.mkdir(parents=True)
        (etc / "station.toml").write_text('[station]\nname = "s"\nmode = "bench"\ndrivers = ["pkcs11"]\n')
        self.state = self.root / "var/lib/hallmark/station"
        self.state.mkdir(parents=True)
        (self.root / "run/hallmark").mkdir(parents=True)
        self.key = key_pair(folder, "officer", etc / "trust/bundle-signers")
        self.list_key = key_pair(folder, "vendor", etc / "trust/ek-list-signers")
        self.list_signers = etc / "trust/ek-list-signers"
        self.vendors = folder / "vendors/Maker"
        self.vendors.mkdir(parents=True)
        (self.vendors / "root.der").write_bytes(ROOT_DER)
        (self.vendors / "middle.der").write_bytes(MIDDLE_DER)
        (self.vendors / "middle.crl").write_bytes(MIDDLE.crl(7))

    def __call__(self, *words: object) -> tuple[int, str]:
        code = main(["--root", str(self.root), *map(str, words)])
        return code, self._say()

    def bundle(self, serial: int) -> Path:
        out = self.folder / "bundle.json"
        made = self("trust", "make", self.vendors.parent, "--key", self.key, "--serial", serial, "--out", out)
        assert made[0] == 0, made
        return out

    def ek_list(self, lot: str = "L1", count: int = 1) -> Path:
        path = self.folder / f"{lot}.jsonl"
        header = {"format": FORMAT, "lot": lot, "vendor": "Maker", "created": NOW.isoformat(), "count": count}
        lines = [
            {
                "ek_public": base64.b64encode(ek_public(rsa_key(number))).decode(),
                "certificate": base64.b64encode(MIDDLE.ek(rsa_key(number))).decode(),
            }
            for number in range(count)
        ]
        data = b"".join(msgspec.json.encode(item) + b"\n" for item in (header, *lines))
        write_signed(path, data, load_private_key(self.list_key))
        return path


@pytest.fixture
def desk(capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    def said() -> str:
        captured = capsys.readouterr()
        return captured.out + captured.err

    with tempfile.TemporaryDirectory(prefix="hm-") as folder:  # short: there are sockets below it
        yield Desk(Path(folder), said)


def test_a_bundle_goes_from_a_folder_to_the_station(desk: Desk) -> None:
    code, said = desk("trust", "check")
    assert code == 1
    assert "trust/ek" in said
    code, said = desk("trust", "import", desk.bundle(1))
    assert code == 0, said
    assert "signed by officer.pem" in said
    assert "installed already" in desk("trust", "import", desk.folder / "bundle.json")[1]
    listed = json.loads(desk("trust", "list", "--json")[1])
    assert (listed["source"], listed["serial"], listed["signer"]) == ("bundle", 1, "officer.pem")
    assert [item["subject"] for item in listed["roots"]] == ["CN=maker root"]
    assert [item["vendor"] for item in listed["intermediates"]] == ["Maker"]
    assert [(item["revoked"], item["stale"]) for item in listed["crls"]] == [(1, False)]
    assert "CN=maker root" in desk("trust", "list")[1]
    code, said = desk("trust", "check", "--json")
    assert code == 0
    assert any("no revocation list of 'CN=maker root'" in item["what"] for item in json.loads(said))


def test_what_is_stale_makes_check_say_so_with_exit_code_1(desk: Desk) -> None:
    (desk.vendors / "middle.crl").write_bytes(MIDDLE.crl(start=NOW - 9 * DAY, end=NOW - DAY))
    code, said = desk("trust", "import", desk.bundle(1))
    assert code == 0
    assert "warning: revocation list" in said
    code, said = desk("trust", "check")
    assert code == 1
    assert "wrong    revocation list of 'CN=maker intermediate' ended" in said


def test_an_older_bundle_and_one_of_another_signer_are_refused(desk: Desk, tmp_path: Path) -> None:
    assert desk("trust", "import", desk.bundle(3))[0] == 0
    code, said = desk("trust", "import", desk.bundle(2))
    assert code == 2
    assert "not newer than bundle 3" in said
    other = key_pair(tmp_path, "other", tmp_path / "others")
    path = desk.bundle(4)
    write_signed(path, path.read_bytes(), load_private_key(other))
    code, said = desk("trust", "import", path)
    assert code == 2
    assert "is not signed by officer.pem" in said
    assert json.loads(desk("trust", "list", "--json")[1])["serial"] == 3


def test_an_import_is_on_the_audit_trail_of_a_station_that_does_not_run(desk: Desk) -> None:
    with Store.open(desk.state / "station.db", ballast=4096):
        pass
    assert desk("trust", "import", desk.bundle(1))[0] == 0
    with Store.open(desk.state / "station.db", readonly=True) as store:
        kinds = {event.kind: event.detail for event in store.events(0, 100)}
    assert kinds["trust-bundle-taken"]["serial"] == 1
    (desk.state / "trust/current").unlink()
    (desk.vendors / "middle.crl").unlink()
    code, said = desk("trust", "import", desk.bundle(1))
    assert code == 2, "another bundle of the same number"
    assert "two trust bundles with the number 1" in said


def test_a_preflight_says_what_share_of_a_lot_the_bundle_verifies(desk: Desk) -> None:
    desk("trust", "import", desk.bundle(1))
    code, said = desk("trust", "preflight", desk.ek_list(count=2), "--json")
    found = json.loads(said)
    assert code == 0
    assert (found["total"], found["verified"], found["share"]) == (2, 2, 1.0)
    (desk.vendors / "root.der").write_bytes(Maker("x").ca(Maker("x")))
    for name in ("middle.der", "middle.crl", "root.der"):
        (desk.vendors / name).unlink()
    other = Maker("another root")
    (desk.vendors / "root.pem").write_bytes(pem(other.ca(other)))
    desk("trust", "import", desk.bundle(2))
    code, said = desk("trust", "preflight", desk.folder / "L1.jsonl")
    assert code == 1
    assert "2 fail: the EK certificate was issued by 'CN=maker intermediate'" in said


def pem(der: bytes) -> bytes:
    from cryptography import x509

    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def test_a_running_station_takes_in_a_list_and_answers_for_it(desk: Desk) -> None:
    """The command asks the station's socket; the database is the station's alone meanwhile."""
    with Store.open(desk.state / "station.db", ballast=4096) as store:
        server = StatusServer(FakeControl(), store, desk.root / "run/hallmark/status.sock", GROUPS)
        server.start()
        intake = Intake(desk.state / "trust", store, lambda: load_signers(desk.list_signers))
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.02):
                intake.look()

        thread = threading.Thread(target=look)
        thread.start()
        try:
            assert desk("ek-list", "import", desk.ek_list(count=2)) == (0, "lot L1: 2 endorsement keys\n")
            assert "there already" in desk("ek-list", "import", desk.folder / "L1.jsonl")[1]
            bad = desk.ek_list("L2")
            lines = bad.read_bytes().splitlines(keepends=True)
            write_signed(bad, b"".join([lines[0], b"{}\n"]), load_private_key(desk.list_key))
            code, said = desk("ek-list", "import", bad)
            assert code in (1, 2)
            assert "neither ek_public nor ek_name" in said
            assert [item["lot"] for item in json.loads(desk("ek-list", "list", "--json")[1])] == ["L1"]
            found = json.loads(desk("ek-list", "check", "L1", "--json")[1])
            assert (found["listed"], found["seen"], found["not_seen"]) == (2, 0, 2)
            assert len(found["not_seen_eks"]) == 2
            assert desk("ek-list", "check", "L9")[0] == 1
            out = desk.folder / "out.jsonl"
            assert desk("ek-list", "export", out, "--lot", "X", "--key", desk.list_key)[0] == 0
            assert json.loads(out.read_text())["count"] == 0
        finally:
            stop.set()
            thread.join()
            intake.stop()
            server.stop()
