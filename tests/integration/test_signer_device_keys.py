"""Keys for devices from a real token, through the signer's socket: killed in between, it gives the same key again."""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hal.errors import DuplicateKey, KeyConflict, KeyMissing, PossessionUnproven, StationError
from hal.types import KeyPurpose, delivery_info
from station import messages
from station.sealing import SUITE, open_upload
from tests.fixtures_signer import REPOSITORY, BenchCa, bench_ca

MASTER = secrets.token_bytes(64)
UPLOADER = ec.generate_private_key(ec.SECP256R1())
BOARD = ec.generate_private_key(ec.SECP256R1())
POINT = BOARD.public_key().public_bytes(
    serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
)


@pytest.fixture
def ca(short_root: Path) -> Iterator[BenchCa]:
    """A bench CA whose signer is not started yet, with an upload key."""
    with bench_ca(short_root, start=False) as found:
        folder = found.paths.configuration.parent
        (folder / "trust").mkdir(exist_ok=True)
        (folder / "trust/upload.pem").write_bytes(
            UPLOADER.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        with found.paths.configuration.open("a") as stream:
            stream.write('[device_keys]\nupload_key = "trust/upload.pem"\n')
        yield found


def asked(unit: str, group: str = "", purpose: str = "symmetric", key_type: str = "") -> messages.SealKey:
    return messages.SealKey(unit, f"dev-{unit}", purpose, POINT, group, key_type)


def opened(request: messages.SealKey, found: messages.KeyForBoard) -> bytes:
    info = delivery_info(KeyPurpose(request.purpose), request.registration_id)
    return SUITE.decrypt(found.encapsulated + found.ciphertext, BOARD, info=info)


def key_of(ca: BenchCa, unit: str, group: str = "") -> bytes:
    request = asked(unit, group)
    return opened(request, ca.client.seal_key(request))


def group_key(
    ca: BenchCa, what: str, text: bytes | None = None, label: str = "line"
) -> subprocess.CompletedProcess[str]:
    words = ["ca", "group-key", what, "--label", label]
    if text is None:
        return ca.hallmark(*words)
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    try:
        return ca.hallmark(*words, "--key-fd", str(reading), pass_fds=(reading,))
    finally:
        os.close(reading)


def test_a_group_key_goes_in_once_and_devices_keys_come_of_it_whether_the_signer_runs_or_not(
    ca: BenchCa,
) -> None:
    text = base64.b64encode(MASTER)
    alone = group_key(ca, "import", text)
    assert alone.returncode == 0, alone.stderr
    ca.start()
    running = group_key(ca, "import", text, "again")
    assert running.returncode == 0, running.stderr
    check = alone.stdout.split("check value ")[1].split()[0]
    assert check in running.stdout
    assert check in group_key(ca, "check").stdout
    taken = group_key(ca, "import", text)
    assert taken.returncode == 1
    assert "already" in taken.stderr
    for done in (alone, running, taken):
        assert text.decode() not in done.stdout + done.stderr + str(done.args)
    assert key_of(ca, "u1", "line") == hmac.digest(MASTER, b"dev-u1", "sha256")
    with pytest.raises(KeyMissing, match="none-such"):
        key_of(ca, "u2", "none-such")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"not base64!", "base64"),
        (base64.b64encode(bytes(16)), "16 octets"),
        (base64.b64encode(bytes(65)), "65 octets"),
        (b"A" * 5000, "base64"),
    ],
)
def test_what_is_no_group_key_is_refused_and_not_quoted(ca: BenchCa, text: bytes, words: str) -> None:
    done = group_key(ca, "import", text)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert text.decode() not in done.stderr


def test_a_group_key_is_never_taken_from_the_command_line(ca: BenchCa) -> None:
    done = ca.hallmark("ca", "group-key", "import", "--label", "line")
    assert done.returncode == 2
    assert "--key-fd" in done.stderr
    assert ca.hallmark("ca", "group-key", "import", "--label", "a b", "--key-fd", "0").returncode == 2


def test_a_killed_signer_gives_the_same_key_again_and_two_units_never_one(ca: BenchCa) -> None:
    ca.start()
    request = asked("u1")
    first = ca.client.seal_key(request)
    key = opened(request, first)
    uploaded = open_upload(UPLOADER, "dev-u1", first.upload)
    assert uploaded is not None
    assert uploaded.primary.reveal() == key
    ca.stop(signal.SIGKILL)
    ca.start()
    again = ca.client.seal_key(request)
    assert opened(request, again) == key
    assert again.upload == first.upload
    assert again.ciphertext != first.ciphertext, "sealed anew"
    assert key_of(ca, "u2") != key
    nonce = secrets.token_bytes(32)
    mac = hmac.digest(hmac.digest(key, b"hallmark key proof 1", "sha256"), nonce, "sha256")
    ca.client.check_key(messages.CheckKey("u1", nonce, mac))
    with pytest.raises(PossessionUnproven):
        ca.client.check_key(messages.CheckKey("u2", nonce, mac))
    assert ca.client.kept_keys() == ["u1", "u2"]
    ca.client.forget_keys(["u1"])
    ca.stop(signal.SIGKILL)
    ca.start()
    assert ca.client.kept_keys() == ["u2"]
    ca.client.check_key(messages.CheckKey("u1", nonce, mac))
    with pytest.raises(KeyConflict):
        ca.client.seal_key(request)
    with pytest.raises(DuplicateKey):
        ca.client.seal_key(messages.SealKey("u9", "dev-u2", "symmetric", POINT))


CRASHING = """
import os, signal, sys
from station.signer import device_keys, key_ledger
where = sys.argv.pop(1)
def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "before it is durable":
    key_ledger.KeyLedger.add = die
else:
    device_keys.seal_for_board = die
from station.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("where", ["before it is durable", "before it is sealed"])
def test_a_crash_between_making_and_sealing_leaves_one_key(ca: BenchCa, where: str) -> None:
    command = [sys.executable, "-c", CRASHING, where, "--root", str(ca.root), "signer"]
    with ca.log.open("ab") as log:
        ca.process = subprocess.Popen(command, env=ca.environment, cwd=REPOSITORY, stdout=log, stderr=log)
    ca.wait_for(None)
    with pytest.raises(StationError):
        ca.client.seal_key(asked("u1"))
    ca.stop()
    ca.start()
    kept = ca.ledger("SELECT unit FROM device_keys")
    assert kept == ([] if where == "before it is durable" else [("u1",)])
    key = key_of(ca, "u1")
    assert key_of(ca, "u1") == key
    assert len(ca.ledger("SELECT unit FROM device_keys")) == 1


def test_private_keys_for_boards_come_out_of_the_token_and_stay_the_same(ca: BenchCa) -> None:
    ca.start()
    request = asked("u1", purpose="private-key", key_type="p256")
    found = ca.client.seal_key(request)
    private = serialization.load_der_private_key(opened(request, found), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    public = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert public == found.spki
    assert ca.client.seal_key(request).spki == found.spki
    pem = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert opened(request, ca.client.seal_key(request)) == pem
