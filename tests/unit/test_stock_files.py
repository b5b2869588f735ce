"""Lots as others hand them over: read with distrust, paired by key, wrapped at once, refused whole with the file."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from hal.errors import CertificateUntrusted, ConfigError, DuplicateKey
from hal.secret import Secret
from station.paths import Paths
from station.signed import Signer, load_signers, write_signed
from station.stock_files import Delivery, read_pool, read_vendor_manifest
from station.stock_import import leave, pool_context, pool_lot, take, vendor_lot
from station.store import Store
from station.store.stock import KEYS, PRELOADED
from tests.stock_parts import Key, Pki, new_key, spki

PKI = Pki()
NOW = dt.datetime.now(dt.UTC)


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def key_pem(key: Key, password: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


class Handed:
    """A folder with `count` certificates, and who signs for it."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.folder = folder / "L1"
        self.folder.mkdir()
        self.keys = [new_key() for _ in range(count)]
        self.leaves = [PKI.leaf(f"device-{number}", key) for number, key in enumerate(self.keys)]
        for number, leaf in enumerate(self.leaves):
            (self.folder / f"{number}.pem").write_bytes(pem(leaf))
        cas = PKI.issuing.public_bytes(Encoding.PEM) + PKI.root.public_bytes(Encoding.PEM)
        (self.folder / "ca.pem").write_bytes(cas)
        self.signing = ed25519.Ed25519PrivateKey.generate()
        public = self.signing.public_key()
        (folder / "signer.pem").write_bytes(
            public.public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        self.signers: tuple[Signer, ...] = load_signers(folder / "signer.pem")

    def sign(self, lot: str = "L1", digests: list[str] | None = None, **more: Any) -> None:
        listed = [hashlib.sha256(leaf).hexdigest() for leaf in self.leaves] if digests is None else digests
        content = json.dumps({"lot": lot, "certificates": listed, **more}).encode()
        write_signed(self.folder / "pool.json", content, self.signing)

    def read(self, password: Secret | None = None, *, unsigned: bool = False) -> Delivery:
        return read_pool(self.folder, "L1", password, self.signers, unsigned=unsigned)


@pytest.fixture
def handed(tmp_path: Path) -> Handed:
    return Handed(tmp_path)


def test_a_signed_lot_is_read_with_its_issuers_and_without_the_root(handed: Handed) -> None:
    handed.sign()
    found = handed.read()
    assert found.signer == "signer.pem"
    issuing = PKI.issuing.public_bytes(Encoding.DER)
    assert sorted(item.chain for item in found.made) == sorted([leaf, issuing] for leaf in handed.leaves)
    assert [item.key for item in found.made] == [None, None]


def test_private_keys_find_their_certificates_by_the_key_whatever_the_files_are_called(
    handed: Handed,
) -> None:
    (handed.folder / "b.key").write_bytes(key_pem(handed.keys[0]))
    (handed.folder / "a.key").write_bytes(key_pem(handed.keys[1], b"secret"))
    found = handed.read(Secret(b"secret"), unsigned=True)
    for item in found.made:
        key = handed.keys[handed.leaves.index(item.chain[0])]
        assert item.key is not None
        made = serialization.load_der_private_key(item.key.reveal(), None)
        assert isinstance(made, ec.EllipticCurvePrivateKey)
        assert spki(made) == spki(key)


def test_pkcs12_is_read_with_its_password_and_says_nothing_of_it_when_it_is_wrong(tmp_path: Path) -> None:
    key = new_key()
    leaf = x509.load_der_x509_certificate(PKI.leaf("device-1", key))
    bundle = pkcs12.serialize_key_and_certificates(
        b"device-1", key, leaf, [PKI.issuing], serialization.BestAvailableEncryption(b"opensesame")
    )
    (tmp_path / "device-1.p12").write_bytes(bundle)
    found = read_pool(tmp_path / "device-1.p12", "L1", Secret(b"opensesame"), (), unsigned=True)
    assert len(found.made[0].chain) == 2
    assert found.made[0].key is not None
    for wrong in (None, Secret(b"shutsesame")):
        with pytest.raises(ConfigError, match=r"device-1\.p12.*right password") as caught:
            read_pool(tmp_path / "device-1.p12", "L1", wrong, (), unsigned=True)
        assert "sesame" not in str(caught.value)
        assert caught.value.__cause__ is None


def tampered(handed: Handed) -> None:
    handed.sign()
    (handed.folder / "pool.json").write_bytes((handed.folder / "pool.json").read_bytes() + b" ")


def by_another(handed: Handed) -> None:
    handed.signing = ed25519.Ed25519PrivateKey.generate()
    handed.sign()


def one_missing(handed: Handed) -> None:
    handed.sign()
    (handed.folder / "0.pem").unlink()


def one_more(handed: Handed) -> None:
    handed.sign()
    (handed.folder / "more.pem").write_bytes(pem(PKI.leaf("more", new_key())))


def a_key_missing(handed: Handed) -> None:
    handed.sign()
    (handed.folder / "0.key").write_bytes(key_pem(handed.keys[0]))


def twice(handed: Handed) -> None:
    (handed.folder / "again.pem").write_bytes(pem(PKI.leaf("again", handed.keys[0])))
    handed.sign()


def rubbish(handed: Handed) -> None:
    handed.sign()
    (handed.folder / "0.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nrubbish")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda handed: None, "no pool.json"),
        (tampered, "not signed by signer.pem"),
        (by_another, "not signed by signer.pem"),
        (lambda handed: handed.sign(lot="L2"), "of lot 'L2'"),
        (lambda handed: handed.sign(colour="red"), "colour"),
        (lambda handed: handed.sign(digests=["zz"]), "can't be read"),
        (one_missing, "1 certificates are missing, 0 are not listed"),
        (one_more, "0 certificates are missing, 1 are not listed"),
        (a_key_missing, "1 certificates have no private key"),
        (twice, "has the same key as"),
        (rubbish, "can't be read"),
    ],
)
def test_a_lot_that_does_not_hold_is_refused_with_the_file(
    handed: Handed, spoil: Callable[[Handed], None], said: str
) -> None:
    spoil(handed)
    with pytest.raises(ConfigError, match=said):
        handed.read()


def test_on_a_bench_a_lot_needs_no_manifest_but_one_that_is_there_counts(handed: Handed) -> None:
    assert handed.read(unsigned=True).signer is None
    one_more(handed)
    with pytest.raises(ConfigError, match="1 are not listed"):
        handed.read(unsigned=True)


def test_every_certificate_is_judged_and_every_private_key_wrapped_before_anything_is_kept(
    handed: Handed,
) -> None:
    for number, key in enumerate(handed.keys):
        (handed.folder / f"{number}.key").write_bytes(key_pem(key))
    asked: dict[bytes, bytes] = {}

    def wrap(context: bytes, plain: Secret) -> bytes:
        asked[context] = plain.reveal()
        return b"wrapped " + hashlib.sha256(plain.reveal()).digest()

    delivery = handed.read(unsigned=True)
    content = pool_lot(delivery, "L1", PKI.terms, NOW, wrap)
    assert content.lot.kind == KEYS
    assert set(asked) == {pool_context(hashlib.sha256(spki(key)).digest()) for key in handed.keys}
    kept = msgspec.msgpack.encode(content)
    assert all(plain not in kept for plain in asked.values())
    with pytest.raises(CertificateUntrusted, match="leads to no anchor"):
        pool_lot(delivery, "L1", Pki("Another").terms, NOW, wrap)


def test_two_of_one_name_in_a_lot_are_refused_with_the_name(tmp_path: Path) -> None:
    handed = Handed(tmp_path)
    (handed.folder / "third.pem").write_bytes(pem(PKI.leaf("device-0", new_key())))
    with pytest.raises(CertificateUntrusted, match="'device-0'"):
        pool_lot(handed.read(unsigned=True), "L1", PKI.terms, NOW, lambda context, plain: b"")


def test_a_vendors_manifest_is_taken_when_it_is_signed_and_lists_no_key_twice(handed: Handed) -> None:
    path = handed.folder / "V1.json"
    element = {"key": "ab" * 32, "certificate": "cd" * 32}
    for elements, said in (
        ([element], ""),
        ([element, element], "twice"),
        ([], "length"),
        ([{"key": "x"}], "key"),
    ):
        content = json.dumps({"lot": "V1", "vendor": "Elements Inc.", "elements": elements}).encode()
        write_signed(path, content, handed.signing)
        if said:
            with pytest.raises(ConfigError, match=said):
                read_vendor_manifest(path, handed.signers, unsigned=False)
            continue
        found, sha256, signer = read_vendor_manifest(path, handed.signers, unsigned=False)
        lot = vendor_lot(found, sha256, signer)
        assert (lot.lot.kind, lot.lot.signer, lot.entries[0].key) == (PRELOADED, "signer.pem", b"\xab" * 32)
    path.with_name("V1.json.sig").unlink()
    with pytest.raises(ConfigError, match=r"V1\.json\.sig"):
        read_vendor_manifest(path, handed.signers, unsigned=False)


def test_a_lot_that_was_left_is_taken_over_whole_once_and_its_file_goes(
    handed: Handed, tmp_path: Path
) -> None:
    paths = Paths(tmp_path / "root")
    paths.state.mkdir(parents=True)
    content = pool_lot(handed.read(unsigned=True), "L1", PKI.terms, NOW, lambda context, plain: b"")
    with Store.open(paths.database, ballast=4096) as store:
        assert take(paths, store, leave(paths, content), "alice")
        assert not take(paths, store, leave(paths, content), "alice"), "again is fine"
        assert [(view.free, view.origin) for view in store.lots()] == [(2, "L1")]
        other = msgspec.structs.replace(
            content, lot=msgspec.structs.replace(content.lot, lot="L2", sha256=bytes(32))
        )
        with pytest.raises(DuplicateKey, match="stands in lot L1"):
            take(paths, store, leave(paths, other), "alice")
        incoming = paths.state / "incoming"
        assert incoming.stat().st_mode & 0o777 == 0o700
        assert list(incoming.iterdir()) == []
        for name in ("../station.db", "lot-x.msgpack/../../x", "", "lot-nothing.msgpack"):
            with pytest.raises(ConfigError):
                take(paths, store, name, "mallory")
        (incoming / "lot-bad.msgpack").write_bytes(b"\xc1")
        with pytest.raises(ConfigError, match="can't be read"):
            take(paths, store, "lot-bad.msgpack", "mallory")
        assert paths.database.exists()
