"""Checkpoints in the C2SP form, with openssl and the specification's own example as judges."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import AuditBroken
from station.audit import note

KEY = ec.derive_private_key(7, ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
OURS = note.checkpoint_key(SPKI)
HEAD = note.Head("example.com/line-1/0123", 20852163, bytes(range(32)))
EXAMPLE = """\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa \
Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
"""
"""c2sp.org/tlog-checkpoint."""


def signed(head: note.Head = HEAD) -> bytes:
    return note.note(head, OURS, KEY.sign(head.text, ec.ECDSA(hashes.SHA256())))


SIGNED = signed()
"""Made once: a signature is of another length each time."""


def test_the_specifications_example_is_read() -> None:
    found = note.read_note(EXAMPLE.encode())
    assert (found.head.origin, found.head.size) == ("example.com/behind-the-sofa", 20852163)
    assert base64.b64encode(found.head.root) == b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
    assert found.head.text == found.text
    assert [(name, key_id.hex()) for name, key_id, _ in found.signatures] == [
        ("example.com/behind-the-sofa", "033de0ae")
    ]


def test_a_checkpoint_verifies_with_plain_openssl(tmp_path: Path) -> None:
    """By nothing but the specification: split at the last blank line, four octets of key ID, then the signature."""
    text, _, line = signed().decode().rpartition("\n\n")
    octets = base64.b64decode(line.split(" ")[2])
    (tmp_path / "text").write_text(text + "\n")
    (tmp_path / "sig").write_bytes(octets[4:])
    (tmp_path / "key.pem").write_bytes(OURS.pem)
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "sig", "text"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "Verified OK\n"
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-binary"], input=SPKI, capture_output=True, check=True
    )
    assert octets[:4] == digest.stdout[:4]


def test_a_checkpoint_is_read_back_and_its_key_found_among_others() -> None:
    other = ec.derive_private_key(8, ec.SECP256R1()).public_key()
    spki = other.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    found = note.read_note(signed())
    assert found.head == HEAD
    assert note.verify(found, [note.checkpoint_key(spki), OURS]) == OURS
    with pytest.raises(AuditBroken, match="not signed by the key"):
        note.verify(found, [note.checkpoint_key(spki)])


def test_signatures_of_others_are_ignored_and_ours_still_counts() -> None:
    witness = EXAMPLE.rpartition("\n\n")[2].encode()
    assert note.verify(note.read_note(signed() + witness), [OURS]) == OURS
    with pytest.raises(AuditBroken, match="not signed"):
        note.verify(note.read_note(HEAD.text + b"\n" + witness), [OURS])


def test_a_signature_under_another_name_does_not_count() -> None:
    text = signed().replace("— example.com/line-1".encode(), "— example.com/line-2".encode())
    with pytest.raises(AuditBroken, match="not signed"):
        note.verify(note.read_note(text), [OURS])


@given(st.data())
def test_no_changed_octet_of_a_checkpoint_goes_unseen(data: st.DataObject) -> None:
    octets = bytearray(SIGNED)
    place = data.draw(st.integers(0, len(octets) - 1))
    octets[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AuditBroken):
        note.verify(note.read_note(bytes(octets)), [OURS])


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_whatever_is_no_checkpoint_is_refused_with_a_sentence(octets: bytes) -> None:
    with pytest.raises(AuditBroken):
        note.read_note(octets)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("20852163", "020852163"), "origin, size and root"),
        (("20852163", "-1"), "origin, size and root"),
        (("20852163\n", "20852163\nextension\n"), "origin, size and root"),
        (("example.com/behind-the-sofa\n2", "\n2"), "origin, size and root"),
        (("q2I=", "q2J="), "canonical base64"),
        (("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=", "AAAA"), "3 octets"),
        (("—", "-"), "no signature line"),
        (("YQ8=\n", "YQ8="), "incomplete"),
        (("\n\n", "\n"), "no signed note"),
        (("behind", "be\thind"), "no signed note"),
    ],
)
def test_each_rule_of_the_format_is_held(change: tuple[str, str], reason: str) -> None:
    with pytest.raises(AuditBroken, match=reason):
        note.read_note(EXAMPLE.replace(*change).encode())


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_a_key_of_another_kind_is_refused(curve: ec.EllipticCurve) -> None:
    spki = (
        ec.derive_private_key(7, curve)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(AuditBroken, match="another kind of key"):
        note.checkpoint_key(spki)
    with pytest.raises(AuditBroken, match="no public key"):
        note.checkpoint_key(spki[:-3])
