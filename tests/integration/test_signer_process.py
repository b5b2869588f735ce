"""The signer as a process, over a real SoftHSM2 token: crashes, losses, wrong PINs, many who ask, and its end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hal.errors import (
    ConfigurationUntrusted,
    DuplicateKey,
    HallmarkError,
    KeyMissing,
    PeerUnavailable,
    PinRejected,
    TokenAbsent,
    TokenError,
)
from hal.secret import Secret
from hal.types import TokenCondition
from station import messages
from station.signer.pin import MARK
from station.wire import connect
from tests.fixtures_config import Releaser
from tests.fixtures_signer import (
    PIN,
    REPOSITORY,
    TOKEN,
    BenchCa,
    bench_ca,
    configure,
    make_token,
    sign_request,
    softhsm_module,
    station_toml,
)

CRASHING = """
import os, signal, sys
from station.signer.ledger import Ledger
from drivers.pkcs11.session import TokenSession
from station.signer import pin
where = sys.argv.pop(1)
def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "before signing":
    TokenSession.sign = die
elif where == "before storing":
    Ledger.keep = die
elif where == "after storing":
    keep = Ledger.keep
    Ledger.keep = lambda *args: (keep(*args), die())
elif where == "before login":
    begin = pin.PinGuard.begin
    pin.PinGuard.begin = lambda *args: (begin(*args), die())
elif where == "after login":
    pin.PinGuard.end = die
else:
    raise SystemExit(f"no crash point {where!r}")
from station.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start_crashing(ca: BenchCa, where: str) -> subprocess.Popen[bytes]:
    """The real signer, which kills itself at one point."""
    command = [sys.executable, "-c", CRASHING, where, "--root", str(ca.root), "signer"]
    with ca.log.open("ab") as log:
        ca.process = subprocess.Popen(command, env=ca.environment, cwd=REPOSITORY, stdout=log, stderr=log)
    return ca.process


def wait_killed(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("where", ["before signing", "before storing", "after storing"])
def test_a_signer_killed_while_issuing_gives_one_certificate_in_the_end(short_root: Path, where: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    asked = sign_request("7", key)
    with bench_ca(short_root, start=False) as ca:
        process = start_crashing(ca, where)
        ca.wait_for(TokenCondition.READY)
        with pytest.raises(PeerUnavailable):
            ca.client.issue(asked)
        wait_killed(process)
        ca.start()
        state = ca.client.state()
        assert (state.issued, state.pending) == ((1, 0) if where == "after storing" else (0, 1))
        intended = ca.ledger("SELECT tbs, serial FROM certificates")
        chain = ca.client.issue(asked)
        assert ca.client.issue(asked) == chain
        made = x509.load_der_x509_certificate(chain[0])
        assert [(made.tbs_certificate_bytes, made.serial_number.to_bytes(20).lstrip(b"\0"))] == intended
        made.verify_directly_issued_by(x509.load_der_x509_certificate(chain[1]))
        with pytest.raises(DuplicateKey):
            ca.client.issue(sign_request("7"))
        with pytest.raises(DuplicateKey):
            ca.client.issue(sign_request("8", key))
        assert ca.client.state().issued == 1


@pytest.mark.parametrize("where", ["before login", "after login"])
def test_a_signer_killed_in_the_middle_of_a_right_login_comes_back_by_itself(
    short_root: Path, where: str
) -> None:
    with bench_ca(short_root, start=False) as ca:
        wait_killed(start_crashing(ca, where))
        assert json.loads((ca.paths.signer_state / MARK).read_text())["state"] == "trying"
        ca.start()
        assert not (ca.paths.signer_state / MARK).exists()


def test_a_wrong_pin_is_tried_once_whatever_happens_then(short_root: Path) -> None:
    with bench_ca(short_root, start=False) as ca:
        ca.pin_file.write_text("11111111")
        ca.start(ready=False)
        state = ca.client.state()
        assert state.condition == TokenCondition.PIN_WRONG
        assert "11111111" not in state.problem + ca.log.read_text()
        assert ca.wrong_pin_counted()
        # From here on the token's flag is the witness: a right login elsewhere clears it, a wrong one sets it.
        ca.stop()
        ca.log_in_elsewhere()
        assert not ca.wrong_pin_counted()
        asked = sign_request("7")
        for ending in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            ca.start(ready=False)
            assert ca.client.state().condition == TokenCondition.PIN_BLOCKED
            with pytest.raises(PinRejected):
                ca.client.check_token()
            with pytest.raises(PinRejected):
                ca.client.issue(asked)
            ca.stop(ending)
            assert not ca.wrong_pin_counted()
        ca.pin_file.write_text(PIN)
        ca.start(ready=False)
        assert ca.client.state().condition == TokenCondition.PIN_BLOCKED
        ca.stop()
        done = ca.hallmark("ca", "unblock", input="no\n")
        assert (done.returncode, "Nothing was changed" in done.stdout) == (1, True)
        assert ca.hallmark("ca", "unblock", "--yes").returncode == 0
        ca.start()


def test_a_running_signer_takes_the_corrected_pin_after_unblocking(short_root: Path) -> None:
    with bench_ca(short_root, start=False) as ca:
        ca.pin_file.write_text("11111111")
        ca.start(ready=False)
        assert ca.hallmark("ca", "unblock", "--yes").returncode == 0
        with pytest.raises(PinRejected, match="refused by the token already"):
            ca.client.check_token()
        ca.pin_file.write_text(PIN)
        assert ca.client.check_token().condition == TokenCondition.READY


def test_a_token_that_goes_and_comes_back_is_told_and_used_again(signer: BenchCa) -> None:
    asked = sign_request("7")
    chain = signer.client.issue(asked)
    away = signer.tokens.rename(signer.root / "away")
    with pytest.raises(TokenAbsent):
        signer.client.check_token()
    state = signer.client.state()
    assert (state.condition, bool(state.problem), bool(state.hint)) == (TokenCondition.ABSENT, True, True)
    assert signer.client.issue(asked) == chain
    later = sign_request("8")
    with pytest.raises(TokenAbsent):
        signer.client.issue(later)
    status = signer.hallmark("ca", "status", "--json")
    assert status.returncode == 1
    assert json.loads(status.stdout)["token"]["condition"] == "absent"
    away.rename(signer.tokens)
    signer.wait_for(TokenCondition.READY)  # nobody asked: the supervisor looks
    assert len(signer.client.issue(later)) == 2


def test_a_signer_starts_without_its_token_and_finds_it_later(short_root: Path) -> None:
    with bench_ca(short_root, start=False) as ca:
        away = ca.tokens.rename(ca.root / "away")
        ca.start(ready=False)
        assert ca.client.state().condition == TokenCondition.ABSENT
        away.rename(ca.tokens)
        ca.wait_for(TokenCondition.READY)


def test_many_who_ask_at_once_all_get_their_own_and_the_same_for_the_same(signer: BenchCa) -> None:
    requests = [sign_request(f"u{number % 20}", KEYS[number % 20]) for number in range(80)]
    with ThreadPoolExecutor(8) as pool:
        chains = list(pool.map(lambda asked: signer.client.issue(asked), requests))
    for number, chain in enumerate(chains):
        assert chain == chains[number % 20]
        made = x509.load_der_x509_certificate(chain[0])
        assert made.public_key() == KEYS[number % 20].public_key()
    assert len({bytes(chain[0]) for chain in chains}) == 20
    assert len({x509.load_der_x509_certificate(chain[0]).serial_number for chain in chains}) == 20
    assert signer.client.state().issued == 20


KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(20)]


def test_secrets_are_wrapped_for_their_context_and_outlive_the_signer(signer: BenchCa) -> None:
    wrapped = signer.client.wrap(b"unit 7", Secret(b"an auth value"))
    assert b"an auth value" not in wrapped
    signer.stop()
    signer.start()
    assert signer.client.unwrap(b"unit 7", wrapped) == Secret(b"an auth value")
    with pytest.raises(TokenError, match="does not unwrap"):
        signer.client.unwrap(b"unit 8", wrapped)
    assert signer.client.state().condition == TokenCondition.READY


def test_a_signer_that_is_told_to_stop_answers_what_it_was_asked_and_ends(signer: BenchCa) -> None:
    process = signer.process
    assert process is not None
    answers: list[object] = []

    def ask() -> None:
        for number in range(2000):
            try:
                answers.append(
                    signer.client.issue(sign_request(f"u{number}", ec.generate_private_key(ec.SECP256R1())))
                )
            except PeerUnavailable as error:
                answers.append(error)
                return

    idle = connect(signer.paths.signer_socket, messages.FromSigner)
    thread = threading.Thread(target=ask)
    thread.start()
    while len(answers) < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    thread.join(10)
    idle.close()
    assert isinstance(answers[-1], PeerUnavailable)
    assert not signer.paths.signer_socket.exists()
    issued = ledger_count(signer)
    # All that was issued was answered; at most the one whose connection came too late was not even begun.
    assert issued == len(answers) - 1


def ledger_count(ca: BenchCa) -> int:
    rows = ca.ledger("SELECT count(*) FROM certificates WHERE certificate IS NOT NULL")
    return int(rows[0][0])


def test_a_second_signer_and_a_ceremony_are_kept_out(signer: BenchCa) -> None:
    for words in (("signer",), ("ca", "init", "--bench")):
        done = signer.hallmark(*words)
        assert done.returncode == 1
        assert "another signer" in done.stderr
    assert signer.client.check_token().condition == TokenCondition.READY


def test_garbage_on_the_socket_ends_that_connection_only(shared_signer: BenchCa) -> None:
    for raw in (b"\xff\xff\xff\xff", b"\0\0\0\3abc", b"\0\0\0\1\x80", os.urandom(64), b"\0\0"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(shared_signer.paths.signer_socket))
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # closed with octets unread
                assert connection.recv(16) == b""
    assert shared_signer.client.check_token().condition == TokenCondition.READY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user")
def test_a_user_who_is_neither_the_signers_nor_in_the_stations_group_gets_no_answer(
    shared_signer: BenchCa,
) -> None:
    path = shared_signer.paths.signer_socket
    for folder in [path, *path.parents][: len(path.relative_to(shared_signer.root).parts) + 1]:
        folder.chmod(0o777)  # so that only the peer's credentials can keep him out
    code = (
        "import socket, sys\n"
        "c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1])\n"
        "frame = bytes.fromhex('0000001481a474797065ad7369676e65722d737461747573')\n"
        "try:\n    c.sendall(frame); print(len(c.recv(9)))\n"
        "except (BrokenPipeError, ConnectionResetError):\n    print(0)\n"
    )
    answered = {}
    for user in (0, 65534):
        # The interpreter behind the virtual environment: another user may not enter the checkout's folder.
        command = [os.path.realpath(sys.executable), "-c", code, str(path)]
        done = subprocess.run(
            command,
            user=user,
            group=user,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        answered[user] = done.stdout.strip() or done.stderr
    assert answered == {0: "9", 65534: "0"}
    path.chmod(0o660)


def test_the_signer_imports_no_other_driver_than_its_own(shared_signer: BenchCa) -> None:
    assert shared_signer.process is not None
    mapped = Path(f"/proc/{shared_signer.process.pid}/maps").read_text()
    assert "softhsm" in mapped
    assert "tss2" not in mapped
    code = (
        "import sys\nfrom pathlib import Path\nfrom station.paths import Paths\nfrom station.signer import process\n"
        "process.signer_configuration(Paths(Path(sys.argv[1])))\n"
        "print(sorted(name for name in sys.modules if name.startswith('drivers.') and name.count('.') == 1))\n"
    )
    text = shared_signer.paths.configuration.read_text()
    shared_signer.paths.configuration.write_text(
        text.replace('["pkcs11"]', '["pkcs11", "azure-dps", "no-such-driver"]')
    )
    command = [sys.executable, "-c", code, str(shared_signer.root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() == "['drivers.pkcs11']"


def test_the_pin_comes_by_file_descriptor_too(short_root: Path) -> None:
    with bench_ca(short_root, start=False) as ca:
        ca.pin_file.unlink()
        reading, writing = os.pipe()
        os.write(writing, PIN.encode() + b"\n")
        os.close(writing)
        command = [
            sys.executable,
            "-m",
            "station.cli",
            "--root",
            str(ca.root),
            "signer",
            "--pin-fd",
            str(reading),
        ]
        with ca.log.open("ab") as log:
            ca.process = subprocess.Popen(
                command, env=ca.environment, cwd=REPOSITORY, stdout=log, stderr=log, pass_fds=(reading,)
            )
        os.close(reading)
        ca.wait_for(TokenCondition.READY)
        pid = ca.process.pid
        for shown in ("cmdline", "environ"):
            assert PIN.encode() not in Path(f"/proc/{pid}/{shown}").read_bytes()


def test_a_pin_that_others_may_read_is_not_used(short_root: Path) -> None:
    with bench_ca(short_root, start=False) as ca:
        ca.pin_file.chmod(0o644)
        ca.start(ready=False)
        state = ca.client.state()
        assert "0644" in state.problem
        assert not (ca.paths.signer_state / MARK).exists()
        ca.pin_file.chmod(0o600)
        ca.wait_for(TokenCondition.READY)


def test_production_takes_no_bench_ca(short_root: Path) -> None:
    with bench_ca(short_root, start=False) as ca:
        ca.paths.configuration.write_text(station_toml(softhsm_module(), "production"))
        Releaser(short_root).release()
        done = ca.hallmark("signer")
        assert (done.returncode, "--bench" in done.stderr) == (2, True)
        assert ca.hallmark("ca", "init", "--bench").returncode == 2


def test_an_empty_token_is_made_a_ca_with_a_certificate_from_any_root(short_root: Path) -> None:
    """The ceremony as production does it: keys, request, an outside root with openssl, install, issue."""
    ca = configure(short_root, make_token(short_root))
    ca.paths.configuration.write_text(station_toml(softhsm_module(), "production"))
    Releaser(short_root).release()
    digest = hashlib.sha256((ca.paths.configuration.parent / "set.json").read_bytes()).digest()
    asked = msgspec.structs.replace(sign_request("7"), configuration=digest)
    try:
        ca.start(ready=False)
        assert ca.client.state().condition == TokenCondition.KEY_MISSING
        with pytest.raises(KeyMissing, match="no CA certificate"):
            ca.client.issue(asked)
        ca.stop()
        done = ca.hallmark("ca", "init", "--key-type", "p384")
        assert done.returncode == 0, done.stderr
        csr, chain = short_root / "ca.csr", short_root / "chain.pem"
        assert ca.hallmark("ca", "csr", "--out", str(csr), "--organization", "Acme").returncode == 0
        outside_root(short_root, csr, chain)
        root, stranger = short_root / "root.pem", short_root / "stranger.pem"
        without = ca.hallmark("ca", "install", str(chain))
        assert (without.returncode, "--root" in without.stderr) == (2, True)
        other = ca.hallmark("ca", "install", str(chain), "--root", str(stranger))
        assert (other.returncode, "not signed by" in other.stderr) == (2, True), other.stderr
        own = ca.hallmark("ca", "install", str(root))
        assert (own.returncode, "key in the token" in own.stderr) == (2, True)
        assert ca.hallmark("ca", "install", str(chain), "--root", str(root)).returncode == 0
        ca.start()
        with pytest.raises(ConfigurationUntrusted, match="different configuration sets"):
            ca.client.issue(sign_request("7"))
        issued = [x509.load_der_x509_certificate(der) for der in ca.client.issue(asked)]
        issued[0].verify_directly_issued_by(issued[1])
        issued[1].verify_directly_issued_by(x509.load_pem_x509_certificate(root.read_bytes()))
        assert issued[1].subject.rfc4514_string() == "CN=test-line issuing CA,O=Acme"
        status = ca.hallmark("ca", "status")
        assert status.returncode == 0
        assert f"token     {TOKEN}: ready" in status.stdout
    finally:
        ca.stop(signal.SIGKILL)


def outside_root(folder: Path, csr: Path, chain: Path) -> None:
    """root.pem, stranger.pem of the same name, and in `chain` the certificate that the root gives to `csr`."""
    extensions = folder / "ca.ext"
    extensions.write_text(
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-384",
        "-nodes",
        "-days",
        "7300",
        "-subj",
        "/O=Acme/CN=Root",
    ]
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    for name in ("root", "stranger"):
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        subprocess.run([*new, *usage, *files], check=True, capture_output=True, timeout=30)
    sign = ["openssl", "x509", "-req", "-in", str(csr), "-CA", str(folder / "root.pem"), "-days", "5475"]
    files = ["-CAkey", str(folder / "root.key"), "-extfile", str(extensions), "-out", str(chain)]
    subprocess.run(
        [*sign, "-set_serial", "0x1234567890", *files], check=True, capture_output=True, timeout=30
    )


def test_status_without_a_signer_says_so_and_touches_no_token(short_root: Path) -> None:
    with bench_ca(short_root, start=False) as ca:
        done = ca.hallmark("ca", "status", "--json")
        assert done.returncode == 3
        assert json.loads(done.stdout)["signer"] == "absent"
        assert "bench issuing CA" in json.loads(done.stdout)["ca"]["subject"]


def test_errors_keep_their_kind_over_the_socket(shared_signer: BenchCa) -> None:
    asked = sign_request("e1")
    with pytest.raises(HallmarkError) as caught:
        shared_signer.client.issue(messages.SignRequest("e1", "dev-other", "idevid-p256", asked.csr))
    assert caught.value.code == "CsrRejected"
    with pytest.raises(HallmarkError) as caught:
        shared_signer.client.issue(messages.SignRequest("e1", "dev-e1", "none", asked.csr))
    assert caught.value.code == "ProfileViolation"
