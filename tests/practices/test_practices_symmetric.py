"""Rows 1 to 4: the three ways to authenticate a device, leaf and group, keys out of the token, and none that is shared.

One line with a nest for each way: real boards, a real token, and a cloud where the devices then register themselves.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import os
import secrets
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from drivers.azure_dps.http import Service
from drivers.emulated.bench.layout import POLICY
from drivers.emulated.bench.line import Board
from drivers.emulated.bench.process import wait_for
from drivers.emulated.dps.device import RegistrationFailed
from drivers.emulated.dps.symmetric_device import register
from hal.call import Call
from hal.secret import Secret
from station.paths import Paths
from station.signer import authority
from station.signer_client import SignerClient
from tests.fixtures_dps import ID_SCOPE as TLS_SCOPE
from tests.fixtures_dps import KEY, TlsFiles, running_cloud
from tests.fixtures_dps import POLICY as TLS_POLICY
from tests.fixtures_line import KEYED, Bench, bench_line

SCOPE: Final = "0ne00000000"
MASTER: Final = secrets.token_bytes(64)
WAYS: Final = {
    "T": "gw-200.toml",
    "X": "gw-100.toml",
    "G": "gw-100.toml",
    "S": "gw-100-symmetric.toml",
    "D": "gw-100-symmetric.toml",
}
"""TPM, leaf, X.509 group, individual symmetric key, derived symmetric key."""


def _recipe(bench: Bench, nest: str, name: str, text: str) -> None:
    (bench.layout.etc / "recipes" / name).write_text(text)
    place = f'name = "{nest}"\nplace = "{bench._plans[nest].port}"\nrecipe = '
    bench.edit(f'{place}"{WAYS[nest]}"', f'{place}"{name}"')


def _prepare(bench: Bench) -> None:
    etc = bench.layout.etc
    # The uploader's key pair, by the commands of docs/symmetric-keys.md.
    private, public = etc / "credentials/upload-key", etc / "trust/upload.pem"
    make = (
        "openssl",
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        str(private),
    )
    subprocess.run(make, check=True, capture_output=True)
    private.chmod(0o600)
    subprocess.run(
        ("openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)),
        check=True,
        capture_output=True,
    )
    with (etc / "station.toml").open("a") as stream:
        stream.write('\n[device_keys]\nupload_key = "trust/upload.pem"\n')
    _recipe(
        bench,
        "G",
        "gw-100-group.toml",
        KEYED.replace('"gw-100"', '"gw-100-group"').replace(
            'attestation = "x509"', 'attestation = "x509-group"\ngroup = "line-x509"'
        ),
    )
    symmetric = (etc / "recipes/gw-100-symmetric.toml").read_text()
    derived = symmetric.replace('sku = "gw-100-symmetric"', 'sku = "gw-100-derived"')
    derived = derived.replace('keys = "individual"', 'keys = "group"\ngroup_key = "line"')
    derived = derived.replace(
        'attestation = "symmetric-key"', 'attestation = "symmetric-key"\ngroup = "line-keys"'
    )
    _recipe(bench, "D", "gw-100-derived.toml", derived)
    assert "check value" in _import_group_key(bench, base64.b64encode(MASTER))
    _make_groups(bench)


def _import_group_key(bench: Bench, text: bytes) -> str:
    reading, writing = os.pipe()
    os.write(writing, text)
    os.close(writing)
    command = bench.layout.hallmark("ca", "group-key", "import", "--label", "line", "--key-fd", str(reading))
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **bench.layout.environment},
            pass_fds=(reading,),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        os.close(reading)
    return done.stdout


def _intermediate(bench: Bench) -> x509.Certificate:
    installed = authority.load(Paths(bench.layout.root).signer_state)
    assert installed is not None
    return installed.issuer


def _make_groups(bench: Bench) -> None:
    """What an engineer does once in the portal."""
    key = Secret(bench.layout.dps_key_file.read_bytes())
    service = Service(bench.line.cloud.endpoint, POLICY, lambda: key)
    pem = _intermediate(bench).public_bytes(Encoding.PEM).decode()
    text = base64.b64encode(MASTER).decode()
    attestations: dict[str, dict[str, Any]] = {
        "line-x509": {
            "type": "x509",
            "x509": {"signingCertificates": {"primary": {"certificate": pem}}},
        },
        "line-keys": {"type": "symmetricKey", "symmetricKey": {"primaryKey": text, "secondaryKey": text}},
    }
    try:
        for name, attestation in attestations.items():
            made = {
                "enrollmentGroupId": name,
                "attestation": attestation,
                "capabilities": {"iotEdge": False},
            }
            assert service.request(Call.lasting(30), "PUT", "enrollmentGroups", made, item=name).status == 200
    finally:
        service.close()


@dataclass
class Made:
    """A line on which one unit was made in each way; `boards` and `names` (registration IDs) by way."""

    bench: Bench
    boards: dict[str, Board] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def record(self, way: str) -> Path:
        return self.bench.layout.root / f"bench/frames-{way}"

    def uploaded(self) -> bool:
        view = self.bench.line.snapshot()
        return view is not None and view["outbox"]["acknowledged"] >= len(WAYS)

    def secret(self, way: str) -> bytes:
        return (self.boards[way].state / "secret.key").read_bytes()

    def export(self, way: str) -> Path:
        out = self.bench.layout.root / "export"
        self.bench.hallmark("units", "export", self.names[way], "--out", str(out))
        return out / self.names[way]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    for bench in bench_line(WAYS, _prepare):
        found = Made(bench)
        for way in WAYS:
            options = () if way == "T" else ("--no-tpm",)
            board = bench.board(way, f"SN-{way}", *options, "--record", str(found.record(way)))
            found.boards[way] = bench.plug(board)
        for way in WAYS:
            seen = bench.verdict(way, after="")
            assert seen["outcome"] == "PASS", (way, seen)
            found.names[way] = seen["registration_id"]

        wait_for("the uploads", 60, found.uploaded)
        yield found


def _enrolled(made: Made) -> dict[str, dict[str, Any]]:
    return {record["registrationId"]: record for record in made.bench.line.cloud.enrollments()}


def test_row_01_each_way_to_authenticate_a_device_is_a_recipes_choice(made: Made) -> None:
    """X.509, TPM and symmetric key, on one line, by recipe; and the symmetric devices register by themselves."""
    enrolled = _enrolled(made)
    kinds = {
        way: enrolled[name]["attestation"]["type"] for way, name in made.names.items() if name in enrolled
    }
    assert kinds == {"T": "tpm", "X": "x509", "S": "symmetricKey"}, "groups have no record for each unit"
    ek = base64.b64encode((made.export("T") / "ek.pub").read_bytes()).decode()
    assert enrolled[made.names["T"]]["attestation"]["tpm"]["endorsementKey"] == ek
    endpoint = made.bench.line.cloud.endpoint
    for way in ("S", "D"):
        assigned = register(endpoint, SCOPE, made.names[way], made.secret(way))
        assert assigned.registration_id == made.names[way]
        with pytest.raises(RegistrationFailed, match="401"):
            register(endpoint, SCOPE, made.names[way], bytes(32))


def test_row_02_a_leaf_is_enrolled_alone_or_proves_itself_by_its_chain_to_the_group(
    made: Made, tls_files: TlsFiles, tmp_path: Path
) -> None:
    enrolled = _enrolled(made)
    leaf = x509.load_pem_x509_certificate((made.export("X") / "device.pem").read_bytes())
    (info,) = (
        entry["info"]
        for entry in enrolled[made.names["X"]]["attestation"]["x509"]["clientCertificates"].values()
    )
    assert info["sha256Thumbprint"] == leaf.fingerprint(SHA256()).hex().upper()

    folder, name = made.export("G"), made.names["G"]
    assert name not in enrolled
    chain = x509.load_pem_x509_certificates((folder / "chain.pem").read_bytes())
    assert [str(item.issuer) for item in chain[:1]] == [str(item.subject) for item in chain[1:2]]
    assert chain[1] == _intermediate(made.bench), "the chain goes up to the intermediate"
    inventory = json.loads((folder / "unit.json").read_text())
    assert [(item["state"], item["existed"]) for item in inventory["enrollments"]] == [("acknowledged", True)]
    # In a cloud that has nothing but the group, over TLS, with the chain and the board's own key.
    with running_cloud(tls_files.tls) as cloud:
        service = Service(cloud.endpoint, TLS_POLICY, lambda: Secret(KEY.encode()), tls_files.trust)
        pem = chain[1].public_bytes(Encoding.PEM).decode()
        certificates = {"signingCertificates": {"primary": {"certificate": pem}}}
        group = {
            "enrollmentGroupId": "line-x509",
            "attestation": {"type": "x509", "x509": certificates},
            "capabilities": {"iotEdge": False},
        }
        service.request(Call.lasting(30), "PUT", "enrollmentGroups", group, item="line-x509")
        service.close()
        context = ssl.create_default_context(cafile=tls_files.trust)
        context.load_cert_chain(folder / "chain.pem", made.boards["G"].state / "key.pem")
        connection = http.client.HTTPSConnection("localhost", cloud.port, context=context, timeout=20)
        path = f"/{TLS_SCOPE}/registrations/{name}/register?api-version=2021-10-01"
        body, kind = json.dumps({"registrationId": name}), {"Content-Type": "application/json"}
        connection.request("PUT", path, body, kind)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        assert (answer.status, said.get("status")) == (202, "assigning"), said
        connection.close()


def _forms(secret: bytes) -> dict[str, bytes]:
    return {
        "raw": secret,
        "base64": base64.b64encode(secret).rstrip(b"="),
        "base64url": base64.urlsafe_b64encode(secret).rstrip(b"="),
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
    }


def _unframed(recording: Path) -> bytes:
    """All that crossed a board's port, as octets, and the messages that its lines carry."""
    octets = b"".join(
        bytes.fromhex(str(value))
        for line in recording.read_text().splitlines()
        for value in json.loads(line).values()
        if isinstance(value, str) and len(value) % 2 == 0 and all(c in "0123456789abcdef" for c in value)
    )
    decoded = b""
    for part in octets.replace(b"\x06\x09", b"\n").replace(b"\x04\x14", b"").split(b"\n"):
        text = part.strip()
        if text and len(text) % 4 == 0:
            try:
                decoded += base64.b64decode(text, validate=True)
            except ValueError:
                continue
    return octets + decoded


def test_row_03_keys_come_out_of_the_token_and_are_nowhere_in_clear(made: Made) -> None:
    """Each board has its own; the group key stays in the token; no file, log, queue or frame has any of them."""
    own, derived = made.secret("S"), made.secret("D")
    assert derived == hmac.digest(MASTER, made.names["D"].encode(), "sha256")
    assert len(own) == 32
    assert own != derived
    verifiers = [hmac.digest(key, b"hallmark key proof 1", "sha256") for key in (own, derived)]
    wanted = {
        f"{what} as {form}": text
        for what, secret in {"own": own, "derived": derived, "group": MASTER, "V": verifiers[0]}.items()
        for form, text in _forms(secret).items()
    }
    root = made.bench.layout.root
    theirs = {made.boards[way].state / "secret.key" for way in ("S", "D")}
    for way in ("S", "D"):
        made.export(way)
    looked = 0
    for file in sorted(root.rglob("*")):
        # The boards have their keys, and the cloud has what was uploaded to it: these two alone.
        if not file.is_file() or file in theirs or file.name.startswith("dps.db"):
            continue
        octets = file.read_bytes()
        looked += 1
        assert [what for what, text in wanted.items() if text in octets] == [], file
    assert looked > 50
    cloud = b"".join(file.read_bytes() for file in root.rglob("dps.db*"))
    assert wanted["own as base64"] in cloud, "the search finds what is there"
    for way in ("S", "D"):
        frames = _unframed(made.record(way))
        assert made.names[way].encode() in frames, "the frames are read"
        assert [what for what, text in wanted.items() if text in frames] == [], way
    sent = json.loads((root / "export" / made.names["S"] / "enrollment.json").read_text())
    assert sent["attestation"]["symmetricKey"] == {"primaryKey": "(not kept)", "secondaryKey": "(not kept)"}


def test_row_03_the_signer_keeps_nothing_of_a_unit_that_passed_and_still_knows_its_board(made: Made) -> None:
    client = SignerClient(Paths(made.bench.layout.root).signer_socket)
    wait_for("the keys to be forgotten", 20, lambda: client.kept_keys() == [])
    before = made.secret("S")
    assert made.bench.again("S")["outcome"] == "PASS"
    assert made.secret("S") == before


@pytest.mark.parametrize("effect", [4])
def test_row_03_a_power_cut_in_the_middle_of_it_ends_in_the_one_key_that_was_enrolled(
    made: Made, effect: int
) -> None:
    """Whatever the board had kept when its power failed: it is what the cloud knows in the end."""
    bench = made.bench
    image = bench.layout.etc / "images/gw-100-symmetric-1.4.2.bin"
    if (before := made.boards.pop("S", None)) is not None:
        bench.unplug(before)
    visit = bench.visit_of("S")
    board = bench.plug(bench.board("S", f"SN-CUT-{effect}", "--no-tpm", "--factory-image", str(image)))
    board.ask(f"cut-at {effect}")
    seen = bench.verdict("S", after=visit)
    for _ in range(3):
        if seen["outcome"] == "PASS":
            break
        seen = bench.again("S")
    assert seen["outcome"] == "PASS", seen
    assert board.ask("status")["power_cuts"] == 1
    name = seen["registration_id"]
    wait_for("the upload", 60, lambda: name in _enrolled(made))
    key = (board.state / "secret.key").read_bytes()
    assert register(bench.line.cloud.endpoint, SCOPE, name, key).registration_id == name
    bench.unplug(board)


def test_row_04_a_recipe_that_would_give_two_units_one_key_is_refused_with_the_reason(made: Made) -> None:
    bench = made.bench
    text = (bench.layout.etc / "recipes/gw-100-symmetric.toml").read_text()
    key = base64.b64encode(MASTER).decode()
    for number, (old, new, line) in enumerate(
        [
            ('keys = "individual"', f'key = "{key}"', "every unit"),
            (
                'keys = "individual"',
                'keys = "group"\ngroup_key = "line"\nregistration_id = "gw-1"',
                "constant ID",
            ),
            ('keys = "individual"', f'keys = "group"\ngroup_key = "{key}"', "label"),
            (
                'id_scope = "0ne00000000"',
                f'id_scope = "0ne1"\nextra = {{ "dps/blob" = "{key}" }}',
                "every unit",
            ),
            ('id_scope = "0ne00000000"', 'id_scope = "0ne1"\nextra = { "dps/key" = "x" }', "every unit"),
        ]
    ):
        assert old in text
        name = f"shared-{number}.toml"
        (bench.layout.etc / "recipes" / name).write_text(text.replace(old, new))
        done = bench.run("recipe", "check", name)
        assert done.returncode == 2, done
        assert line in done.stderr
        assert f"{name}:" in done.stderr
        assert key not in done.stderr + done.stdout
        (bench.layout.etc / "recipes" / name).unlink()
    assert bench.run("recipe", "check", "gw-100-symmetric.toml").returncode == 0
