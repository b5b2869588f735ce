"""Issuing with a key in memory in the token's place: what is refused, what never changes, what the clock may show."""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from hal.call import Call
from hal.errors import (
    ClockUntrusted,
    ConfigError,
    CsrRejected,
    DuplicateKey,
    KeyMissing,
    ProfileViolation,
    ProtocolViolation,
    ResidencyUnproven,
    StationError,
    TokenAbsent,
)
from hal.types import KeyType, TokenCondition, TokenState
from station.attestation import from_json, to_json
from station.messages import SignRequest
from station.nest.attesting import Attesting
from station.signer import ledger
from station.signer.authority import Authority
from station.signer.ceremony import ISSUING_DAYS, bench_authority
from station.signer.clock import RELEASED, TrustedClock
from station.signer.clock import TOLERANCE as CLOCK_TOLERANCE
from station.signer.csr import read_csr
from station.signer.generations import Generations
from station.signer.issuing import Issuer
from station.signer.profiles import load_profile, load_profiles
from tests.ca_parts import LIMITS, Clocks
from tests.fixtures_signer import REPOSITORY, device_csr, sign_request
from tests.tpm_parts import SoftTpm

NOW = dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)
PROFILES = REPOSITORY / "config/profiles"


class MemoryToken:
    """CaToken over a key in memory; `fail` is raised instead of signing."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.signed: list[bytes] = []
        self.fail: BaseException | None = None

    def state(self, call: Call) -> TokenState:
        return TokenState(TokenCondition.READY, "memory")

    def canary(self, call: Call) -> TokenState:
        return self.state(call)

    def public_key(self, call: Call, label: str) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def make_key(self, call: Call, label: str, key_type: KeyType) -> bytes:
        raise AssertionError("issuing makes no keys")

    def sign(self, call: Call, label: str, data: bytes) -> bytes:
        if self.fail is not None:
            raise self.fail
        assert label == "issuing-ca"
        self.signed.append(data)
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


class Desk:
    """An issuer with its surroundings, and a clock to turn."""

    def __init__(self, folder: Path, book: ledger.Ledger) -> None:
        self.folder, self.book = folder, book
        self.clocks = Clocks(NOW)
        self.profiles = folder / "profiles"
        shutil.copytree(PROFILES, self.profiles)
        self.token = MemoryToken()
        self.generations = Generations(book, bench=True)
        self.clock = TrustedClock(book, self.generations, LIMITS, self.clocks.machine)
        self.authority = self.new_authority()

    @property
    def now(self) -> dt.datetime:
        return self.clocks.now

    @now.setter
    def now(self, now: dt.datetime) -> None:
        """So much time passes, as all clocks agree; back, only one of them goes."""
        self.clocks.passes(max(now - self.clocks.now, dt.timedelta(0)))
        self.clocks.now = now

    def new_authority(self) -> Authority:
        """A new generation for the key that the token has now, issuing at once."""
        spki = self.token.public_key(Call(), "issuing-ca")
        made = bench_authority(self.folder / "root", spki, KeyType.P256, self.now)
        installed = self.generations.install("issuing-ca", made, self.now, "test")
        self.generations.activate(installed.number, self.now, self.now, "test")
        return made

    def issuer(self) -> Issuer:
        return Issuer(self.book, self.token, self.generations, self.profiles, self.clock)

    def issue(self, asked: SignRequest) -> list[bytes]:
        return self.issuer().issue(Call.lasting(10), asked)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with ledger.opened(tmp_path / "state") as book:
        yield Desk(tmp_path, book)


def leaf(chain: list[bytes]) -> x509.Certificate:
    return x509.load_der_x509_certificate(chain[0])


def test_a_certificate_says_what_its_profile_says(desk: Desk) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    chain = desk.issue(sign_request("7", key))
    made = leaf(chain)
    assert made.subject.rfc4514_string() == "CN=dev-7,2.5.4.5=dev-7,O=Example Devices"
    assert made.public_key() == key.public_key()
    assert made.not_valid_before_utc == NOW - dt.timedelta(hours=1)
    assert made.not_valid_after_utc == NOW + dt.timedelta(days=3650)
    assert made.serial_number.bit_length() <= 159
    assert made.serial_number > 0
    assert [extension.oid._name for extension in made.extensions] == [
        "basicConstraints",
        "keyUsage",
        "extendedKeyUsage",
        "subjectKeyIdentifier",
        "authorityKeyIdentifier",
    ]
    made.verify_directly_issued_by(desk.authority.issuer)
    assert chain[1:] == desk.authority.ders


def test_asking_again_gives_the_same_bytes_without_token_clock_or_profile(desk: Desk) -> None:
    asked = sign_request("7")
    chain = desk.issue(asked)
    desk.token.fail = TokenAbsent("gone")
    desk.now = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    shutil.rmtree(desk.profiles)
    assert desk.issue(asked) == chain
    assert desk.book.counts() == (1, 0)


def test_a_changed_profile_or_request_for_the_same_key_gives_the_same_certificate(desk: Desk) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    chain = desk.issue(sign_request("7", key, "idevid-p256"))
    assert desk.issue(sign_request("7", key, "client-p256")) == chain


def test_a_unit_has_one_key_and_a_key_one_unit(desk: Desk) -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    desk.issue(sign_request("7", key))
    with pytest.raises(DuplicateKey, match="for another key"):
        desk.issue(sign_request("7", other))
    with pytest.raises(DuplicateKey, match="for unit '7'"):
        desk.issue(sign_request("8", key))
    with pytest.raises(DuplicateKey, match="belongs to another unit"):
        desk.issue(SignRequest("8", "dev-7", "idevid-p256", device_csr("dev-7", other)))
    with pytest.raises(DuplicateKey, match="under another registration ID"):
        desk.issue(SignRequest("7", "dev-8", "idevid-p256", device_csr("dev-8", key)))
    assert desk.book.counts() == (1, 0)


def test_the_intent_is_durable_before_the_token_signs_and_the_same_bytes_are_signed_later(desk: Desk) -> None:
    asked = sign_request("7")
    desk.token.fail = TokenAbsent("gone")
    with pytest.raises(TokenAbsent):
        desk.issue(asked)
    assert desk.book.counts() == (0, 1)
    desk.token.fail = None
    desk.now += dt.timedelta(days=30)
    made = leaf(desk.issue(asked))
    assert made.tbs_certificate_bytes == desk.token.signed[0]
    assert made.not_valid_before_utc == NOW - dt.timedelta(hours=1)
    assert desk.book.counts() == (1, 0)


def test_an_intent_of_a_ca_key_that_is_no_more_is_made_anew_and_a_certificate_stays(desk: Desk) -> None:
    first, second = sign_request("7"), sign_request("8")
    chain = desk.issue(first)
    desk.token.fail = TokenAbsent("gone")
    with pytest.raises(TokenAbsent):
        desk.issue(second)
    desk.token = MemoryToken()
    desk.authority = desk.new_authority()
    assert desk.issue(first) == chain
    made = leaf(desk.issue(second))
    made.verify_directly_issued_by(desk.authority.issuer)
    assert desk.book.counts() == (2, 0)


def test_an_intent_survives_a_renewed_certificate_of_the_same_ca_key(desk: Desk) -> None:
    asked = sign_request("7")
    desk.token.fail = TokenAbsent("gone")
    with pytest.raises(TokenAbsent):
        desk.issue(asked)
    before, desk.token.fail = desk.authority, None
    desk.now += dt.timedelta(days=400)
    desk.authority = desk.new_authority()
    chain = desk.issue(asked)
    assert chain[1:] == before.ders
    leaf(chain).verify_directly_issued_by(before.issuer)


def test_a_signature_by_another_key_never_leaves(desk: Desk) -> None:
    issuer = desk.issuer()
    desk.token.key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(KeyMissing, match="nothing was issued"):
        issuer.issue(Call.lasting(10), sign_request("7"))
    assert desk.book.counts() == (0, 1)


def test_a_clock_that_can_not_be_right_issues_nothing(desk: Desk) -> None:
    for now in (RELEASED - dt.timedelta(seconds=1), NOW - dt.timedelta(hours=2)):
        desk.now = now
        with pytest.raises(ClockUntrusted):
            desk.issue(sign_request("7"))
    desk.now = NOW + dt.timedelta(days=2)
    desk.issue(sign_request("7"))
    desk.now -= CLOCK_TOLERANCE
    desk.issue(sign_request("8"))
    desk.now -= dt.timedelta(minutes=1)
    with pytest.raises(ClockUntrusted, match="went back"):
        desk.issue(sign_request("9"))
    assert desk.book.counts() == (2, 0)


def test_no_certificate_outlives_its_issuer_and_none_is_given_for_too_short(desk: Desk) -> None:
    end = desk.authority.issuer.not_valid_after_utc
    desk.now = end - dt.timedelta(days=2000)
    assert leaf(desk.issue(sign_request("7"))).not_valid_after_utc == end
    desk.now = end - dt.timedelta(days=1824)
    with pytest.raises(ProfileViolation, match="1824 left"):
        desk.issue(sign_request("8"))
    desk.now = end + dt.timedelta(days=1)
    with pytest.raises(ProfileViolation, match="0 left"):
        desk.issue(sign_request("8"))
    assert ISSUING_DAYS > 3650


def test_the_key_is_of_the_profiles_type(desk: Desk) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    for key, profile in (
        (ec.generate_private_key(ec.SECP384R1()), "idevid-p256"),
        (ec.generate_private_key(ec.SECP256K1()), "idevid-p256"),
        (ec.generate_private_key(ec.SECP256R1()), "client-rsa2048"),
        (weak, "client-rsa2048"),
    ):
        with pytest.raises(ProfileViolation):
            desk.issue(sign_request("7", key, profile))
    with pytest.raises(ProfileViolation, match="no certificate profile"):
        desk.issue(sign_request("7", profile="../idevid-p256"))
    assert desk.book.counts() == (0, 0)


def test_a_common_name_has_at_most_64_characters(desk: Desk) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    desk.issue(SignRequest("7", "d" * 64, "client-p256", device_csr(None, key)))
    other = device_csr(None, ec.generate_private_key(ec.SECP256R1()))
    for name in ("d" * 65, "dev\n7", "dev\x007"):
        with pytest.raises(ProfileViolation):
            desk.issue(SignRequest("8", name, "client-p256", other))
    with pytest.raises(ProfileViolation, match="PrintableString"):
        desk.issue(SignRequest("8", "dev_8", "idevid-p256", other))


def test_what_a_request_asks_for_beyond_its_key_is_not_granted(desk: Desk) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Somebody else")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("example.com")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    made = leaf(
        desk.issue(SignRequest("7", "dev-7", "client-p256", csr.public_bytes(serialization.Encoding.DER)))
    )
    assert made.subject.rfc4514_string() == "CN=dev-7,O=Example Devices"
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_a_request_for_somebody_else_or_with_a_broken_signature_is_rejected() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(CsrRejected, match="'dev-8' from the unit 'dev-7'"):
        read_csr(device_csr("dev-8", key), "dev-7")
    broken = bytearray(device_csr("dev-7", key))
    broken[-1] ^= 1
    with pytest.raises(CsrRejected):
        read_csr(bytes(broken), "dev-7")
    swapped = device_csr("dev-7", key).replace(b"dev-7", b"dev-9")
    with pytest.raises(CsrRejected, match="own signature"):
        read_csr(swapped, "dev-9")
    edwards = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    der = edwards.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(serialization.Encoding.DER)
    with pytest.raises(CsrRejected, match="neither EC nor RSA"):
        read_csr(der, "dev-7")


_GOOD = device_csr("dev-7", ec.generate_private_key(ec.SECP256R1()))


@given(st.binary(max_size=600))
def test_garbage_is_no_request(raw: bytes) -> None:
    with pytest.raises(CsrRejected):
        read_csr(raw, "dev-7")


@pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")  # in production: a line in the log
@given(
    at=st.integers(0, len(_GOOD) - 1),
    value=st.integers(1, 255),
    cut=st.integers(0, 3),
    more=st.binary(max_size=3),
)
def test_a_damaged_request_is_rejected_or_is_for_the_same_key(
    at: int, value: int, cut: int, more: bytes
) -> None:
    changed = bytearray(_GOOD)
    changed[at] ^= value
    # Where a change is let through (unused bits of the signature's BIT STRING), key and subject are untouched.
    with contextlib.suppress(CsrRejected):
        assert read_csr(bytes(changed[: len(changed) - cut]) + more, "dev-7") == read_csr(_GOOD, "dev-7")


def test_a_request_that_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(CsrRejected, match="at most"):
        read_csr(b"\x30" * 9000, "dev-7")


def test_the_shipped_profiles_load_and_are_what_their_names_say() -> None:
    found = load_profiles(PROFILES)
    assert {name: profile.file.key_type for name, profile in found.items()} == {
        "client-p256": KeyType.P256,
        "client-rsa2048": KeyType.RSA2048,
        "idevid-forever-p256": KeyType.P256,
        "idevid-p256": KeyType.P256,
        "idevid-tpm-p256": KeyType.P256,
    }
    # A unit may lie a year in a warehouse: each leaves at least half a year after that.
    assert min(profile.least_days for profile in found.values()) >= 365 + 180


@pytest.mark.parametrize(
    ("old", "new", "key", "line"),
    [
        ('key_type = "p256"', 'key_type = "p512"', "key_type", 5),
        ("days = 730", 'days = "730"', "validity.days", 12),
        ("days = 730", "days = 0", "validity.days", 12),
        ("days = 730", "days = 100", "validity.minimum_days", 13),
        ("days = 730", "days = 730\nday = 1", "validity.day", 13),
        ("{registration_id}", "device", "subject.common_name", 8),
        ("{registration_id}", "{registration_id.__class__}", "subject.common_name", 8),
        ('"digital_signature"', '"key_cert_sign"', "extensions.key_usage[0]", 16),
        ('["digital_signature"]', '["key_agreement"]', "extensions.key_usage", 16),
        ('["digital_signature"]', '["digital_signature", "key_encipherment"]', "extensions.key_usage", 16),
        ('"client_auth"', '"server_auth"', "extensions.extended_key_usage[0]", 17),
        ('["client_auth"]', "[]", "extensions.extended_key_usage", 17),
        ('["client_auth"]', '["client_auth"]\nsan = ["email:x"]', "extensions.san[0]", 18),
    ],
)
def test_a_wrong_profile_is_named_by_file_line_and_key(
    tmp_path: Path, old: str, new: str, key: str, line: int
) -> None:
    text = (PROFILES / "client-p256.toml").read_text()
    assert old in text
    (tmp_path / "client.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_profile(tmp_path, "client")
    assert (caught.value.key, caught.value.line) == (key, line)
    assert caught.value.file == str(tmp_path / "client.toml")
    assert "expected" in str(caught.value)


def test_names_in_a_certificate_come_from_the_profile(desk: Desk) -> None:
    text = (PROFILES / "client-p256.toml").read_text()
    names = 'san = ["uri:urn:hallmark:{unit}", "dns:{registration_id}.example.com"]'
    (desk.profiles / "named.toml").write_text(f"{text}\n{names}\n")
    made = leaf(desk.issue(sign_request("7", profile="named")))
    found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:hallmark:7"]
    assert found.get_values_for_type(x509.DNSName) == ["dev-7.example.com"]


def test_a_ledger_has_one_user_at_a_time(tmp_path: Path) -> None:
    with (
        ledger.sole_user(tmp_path),
        pytest.raises(StationError, match="another signer"),
        ledger.sole_user(tmp_path),
    ):
        raise AssertionError("two users")
    with ledger.sole_user(tmp_path):
        assert (tmp_path / ledger.LOCK).exists()


def test_a_ledger_of_a_later_release_is_not_touched(tmp_path: Path) -> None:
    import apsw

    with ledger.opened(tmp_path):
        pass
    with contextlib.closing(apsw.Connection(str(tmp_path / ledger.FILE))) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StationError, match="version 99"), ledger.opened(tmp_path):
        raise AssertionError("opened")


def test_a_ledger_is_durable_as_promised(tmp_path: Path) -> None:
    import apsw

    with ledger.opened(tmp_path) as book:
        db: apsw.Connection = book._db
        assert db.execute("PRAGMA synchronous").get == 3  # EXTRA
        assert db.execute("PRAGMA journal_mode").get == "wal"


# --- what was proven of the key ---------------------------------------------------------------------------------


def attested(tpm: SoftTpm) -> bytes:
    """The transcript of a visit in which that TPM has shown its EK and its device key."""
    attesting = Attesting()
    tpm.show_ek(attesting)
    tpm.show_key(attesting)
    return to_json(attesting.proven_transcript())


def test_a_transcript_is_checked_before_the_intent_and_kept_with_it(desk: Desk) -> None:
    tpm = SoftTpm()
    request = sign_request("7", tpm.device_key)
    transcript = attested(tpm)
    desk.issue(msgspec.structs.replace(request, attestation=transcript))
    assert desk.book.attestation("7") == transcript
    other = sign_request("8", SoftTpm(2).device_key)
    forged = from_json(attested(SoftTpm(2)))
    certification = forged.certification
    assert certification is not None
    forged = msgspec.structs.replace(
        forged,
        certification=msgspec.structs.replace(certification, signature=certification.signature[:-1] + b"\0"),
    )
    for wrong, said in ((transcript, "not the one to be certified"), (to_json(forged), "does not hold")):
        with pytest.raises(ResidencyUnproven, match=said):
            desk.issue(msgspec.structs.replace(other, attestation=wrong))
    with pytest.raises(ProtocolViolation):
        desk.issue(msgspec.structs.replace(other, attestation=b"{}"))
    assert desk.book.counts() == (1, 0), "no intent was written"


def test_a_profile_for_resident_keys_wants_the_proof(desk: Desk) -> None:
    profile = desk.profiles / "idevid-p256.toml"
    profile.write_text(profile.read_text() + "\n[key]\nresident = true\n")
    tpm = SoftTpm(3)
    request = sign_request("9", tpm.device_key)
    with pytest.raises(ProfileViolation, match="nothing was shown"):
        desk.issue(request)
    assert desk.book.counts() == (0, 0)
    chain = desk.issue(msgspec.structs.replace(request, attestation=attested(tpm)))
    assert desk.issue(request) == chain, "what was issued is given again"
