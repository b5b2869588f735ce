"""Rollover and clock as a running line meets them: a real token, the real signer, openssl as the root elsewhere."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hal.errors import ClockUntrusted, PeerUnavailable
from tests.fixtures_signer import BenchCa, softhsm_module, station_toml
from tests.openssl_root import OpensslRoot
from tests.production_ca import did, production_ca, request_of


@pytest.fixture
def line(short_root: Path) -> Iterator[tuple[BenchCa, OpensslRoot]]:
    with production_ca(short_root) as made:
        yield made


def test_a_new_intermediate_takes_over_while_the_line_issues_and_no_request_is_lost(
    line: tuple[BenchCa, OpensslRoot],
) -> None:
    ca, root = line
    first = ca.client.state().generations[0]
    chains: list[list[bytes]] = []
    problems: list[Exception] = []
    stop = threading.Event()
    number = iter(range(100_000))

    def issue() -> None:
        while not stop.is_set():
            try:
                chains.append(ca.client.issue(request_of(ca, f"u{next(number)}")))
            except Exception as error:
                problems.append(error)
                return

    threads = [threading.Thread(target=issue) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        csr = ca.root / "2.csr"
        did(ca, "csr", "--new-key", "--out", str(csr))
        did(ca, "install", str(root.certificate), str(root.sign(csr)))
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
        did(ca, "activate", "2", "--at", f"{soon:%Y-%m-%dT%H:%M:%SZ}")
        states = [one.state for one in ca.client.state().generations]
        assert states == ["active", "next"]
        end = time.monotonic() + 15
        while x509.load_der_x509_certificate(chains[-1][1]).subject.rfc4514_string() == first.subject:
            assert time.monotonic() < end
            assert not problems, problems
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert problems == []
    by: dict[str, int] = {}
    for chain in chains:
        leaf, above = (x509.load_der_x509_certificate(one) for one in chain)
        leaf.verify_directly_issued_by(above)
        by[above.subject.rfc4514_string()] = by.get(above.subject.rfc4514_string(), 0) + 1
    assert set(by) == {"CN=test-line issuing CA,O=Acme", "CN=test-line issuing CA 2"}
    assert sum(by.values()) == len(chains) == ca.client.state().issued
    assert len({x509.load_der_x509_certificate(chain[0]).serial_number for chain in chains}) == len(chains)
    # The station goes on knowing both, also after a restart.
    assert len(ca.client.state().issuers) == 2
    ca.stop()
    ca.start()
    status = json.loads(ca.hallmark("ca", "status", "--json").stdout)
    assert [one["state"] for one in status["generations"]] == ["former", "active"]
    root.verify(chains[0], ca.root / "first")
    root.verify(chains[-1], ca.root / "last")


def test_a_signer_killed_between_intent_and_signature_finishes_it_with_the_former_key(
    line: tuple[BenchCa, OpensslRoot],
) -> None:
    from tests.integration.test_signer_process import start_crashing, wait_killed

    ca, root = line
    asked = request_of(ca, "7", ec.generate_private_key(ec.SECP256R1()))
    ca.stop()
    process = start_crashing(ca, "before signing")
    ca.wait_for(None)
    with pytest.raises(PeerUnavailable):
        ca.client.issue(asked)
    wait_killed(process)
    csr = ca.root / "2.csr"
    # The signer is gone: the same commands do it in its place.
    did(ca, "csr", "--new-key", "--out", str(csr))
    did(ca, "install", str(root.certificate), str(root.sign(csr)))
    did(ca, "activate", "2")
    ca.start()
    leaf, above = (x509.load_der_x509_certificate(one) for one in ca.client.issue(asked))
    leaf.verify_directly_issued_by(above)
    assert above.subject.rfc4514_string() == "CN=test-line issuing CA,O=Acme"
    (_, newer) = (x509.load_der_x509_certificate(one) for one in ca.client.issue(request_of(ca, "8")))
    assert newer.subject.rfc4514_string() == "CN=test-line issuing CA 2"


def test_a_clock_behind_the_mark_is_told_before_a_unit_comes_and_a_person_accepts_it(
    line: tuple[BenchCa, OpensslRoot],
) -> None:
    ca, _ = line
    ca.client.issue(request_of(ca, "1"))
    ca.stop()
    with closing(apsw.Connection(str(ca.paths.signer_state / "ledger.db"))) as db:
        db.execute("UPDATE clock SET mark = mark + 86400")
    ca.start(ready=False)
    state = ca.client.state()
    assert "went back" in state.problem
    assert "accept-clock" in state.hint
    assert ca.hallmark("ca", "status").returncode == 1
    for ask in (ca.client.check_token, lambda: ca.client.issue(request_of(ca, "2"))):
        with pytest.raises(ClockUntrusted, match="went back"):
            ask()
    done = ca.hallmark("ca", "accept-clock", "--reason", "compared with the radio clock", input="no\n")
    assert (done.returncode, "Nothing was changed" in done.stdout) == (1, True)
    done = ca.hallmark("ca", "accept-clock", "--reason", "compared with the radio clock", "--yes")
    assert done.returncode == 0, done.stderr
    assert len(ca.client.issue(request_of(ca, "2"))) == 2
    assert ca.client.state().problem == ""
    ((by, detail),) = ca.ledger("SELECT by, detail FROM acts WHERE what = 'accept-clock'")
    assert by
    assert "compared with the radio clock" in detail


def test_bench_mode_does_not_issue_with_a_production_ca(line: tuple[BenchCa, OpensslRoot]) -> None:
    ca, _ = line
    ca.stop()
    ca.paths.configuration.write_text(station_toml(softhsm_module(), "bench"))
    done = ca.hallmark("signer")
    assert (done.returncode, "production CA" in done.stderr) == (2, True), done.stderr
    done = ca.hallmark("ca", "init", "--bench")
    assert (done.returncode, "production CA" in done.stderr) == (2, True), done.stderr


def test_openssl_reads_what_the_station_asks_for(line: tuple[BenchCa, OpensslRoot]) -> None:
    ca, _ = line
    done = ca.hallmark("ca", "csr", "--new-key", "--key-type", "p384", "--organization", "Acme")
    assert done.returncode == 0, done.stderr
    command = ["openssl", "req", "-verify", "-noout", "-text"]
    shown = subprocess.run(command, input=done.stdout, capture_output=True, text=True, check=True)
    for wanted in ("verify OK", "CA:TRUE, pathlen:0", "384 bit", "O = Acme"):
        assert wanted in shown.stdout + shown.stderr


def test_status_is_there_when_the_configuration_is_broken(line: tuple[BenchCa, OpensslRoot]) -> None:
    ca, _ = line
    assert "profile client-p256: the issuing CA's certificate allows this profile until" in did(ca, "status")
    ca.paths.configuration.write_text("[station\n")
    assert "profiles can't be read" in did(ca, "status")
    (found,) = json.loads(did(ca, "status", "--json"))["generations"]
    assert (found["profiles"], bool(found["profiles_problem"])) == ({}, True)
