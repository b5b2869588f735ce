"""What vouches for an EK under each policy, with certificates in each encoding that the field has."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import EkMismatch, EkRevoked, EkUntrusted, HallmarkError, ProtocolViolation
from station.store.ek_lists import Listing
from station.trust.crl import read_crl
from station.trust.ek_public import read_ek_name, read_ek_public
from station.trust.judge import Judge
from station.trust.reading import read_certificate
from station.trust.trust_set import Origin, TrustSet, assemble
from station.trust.verdict import Verdict
from tests.trust_parts import DAY, KINDS, NOW, STRICT, Maker, ek_name, ek_public, policy, rsa_key

ROOT, MIDDLE, STRANGER = Maker("maker root"), Maker("maker intermediate"), Maker("a stranger")
ROOT_DER, MIDDLE_DER = ROOT.ca(ROOT), ROOT.ca(MIDDLE)
PUBLIC: Final = ek_public(rsa_key())
LISTED: Final = Listing("lot-7", b"\7" * 32)


def trusted(*crls: bytes, certificates: tuple[bytes, ...] = (ROOT_DER, MIDDLE_DER)) -> TrustSet:
    origin = Origin("bundle", "b", 4, b"\4" * 32, "s.pem")
    return assemble(
        origin, [read_certificate(item) for item in certificates], [read_crl(item) for item in crls]
    )


def judged(
    certificate: bytes | None,
    trust: str = "certificate",
    crl: str = "warn",
    *,
    known: TrustSet | None = None,
    listed: bool = False,
    chain: tuple[bytes, ...] = (),
    public: bytes = PUBLIC,
) -> Verdict:
    judge = Judge(lambda: known or trusted(), lambda _name: LISTED if listed else None)
    return judge.judge(policy(trust, crl), public, certificate, chain)


def from_maker(kind: str = "plain", **dates: Any) -> bytes:
    return MIDDLE.ek(rsa_key(), kind, **dates)


# --- certificates as they are in the field ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_certificate_vouches_and_the_record_says_how(kind: str) -> None:
    verdict = judged(from_maker(kind))
    assert verdict.trust == "certificate"
    assert verdict.method == ("strict" if kind in STRICT else "fallback")
    assert verdict.anchor == "CN=maker root"
    assert verdict.anchor_sha256 == read_certificate(ROOT_DER).sha256.hex()
    assert (verdict.source, verdict.bundle_serial, verdict.bundle_sha256) == ("bundle", 4, "04" * 32)
    assert len(verdict.chain) == 3
    assert verdict.ek_name == ek_name(PUBLIC).hex()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_refused_when_another_maker_signed_it_or_it_was_changed(kind: str) -> None:
    with pytest.raises(EkUntrusted, match="no chain from there"):
        judged(STRANGER.ek(rsa_key(), kind))
    good = from_maker(kind)
    at = good.index(b"\x55\x1d\x0f") + 8  # within the key usage extension, which is signed
    for octet in (at, len(good) - 3):
        changed = good[:octet] + bytes([good[octet] ^ 1]) + good[octet + 1 :]
        with pytest.raises(EkUntrusted):
            judged(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_of_another_key_is_a_mismatch_in_each_encoding(kind: str) -> None:
    for trust in ("certificate", "certificate-or-list", "list", "none"):
        with pytest.raises(EkMismatch):
            judged(MIDDLE.ek(rsa_key(1), kind), trust, listed=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tpms_own_chain_in_nv_helps_and_is_trusted_for_nothing(kind: str) -> None:
    root_only = trusted(certificates=(ROOT_DER,))
    assert judged(from_maker(kind), known=root_only, chain=(MIDDLE_DER,)).anchor == "CN=maker root"
    assert (
        judged(from_maker(kind), known=root_only, chain=(b"\x30\x03abc", b"", MIDDLE_DER)).trust
        == "certificate"
    )
    with pytest.raises(EkUntrusted):
        judged(STRANGER.ek(rsa_key(), kind), chain=(STRANGER.ca(STRANGER), ROOT_DER))


@pytest.mark.parametrize("kind", KINDS)
def test_of_cross_signed_authorities_the_way_that_holds_is_found(kind: str) -> None:
    """The first issuer that fits leads nowhere: the search goes back and takes the other one."""
    lost, ended = Maker("a root that nobody has"), Maker("an old root")
    crossed = (
        lost.ca(MIDDLE),
        ended.ca(MIDDLE),
        ROOT.ca(MIDDLE, end=NOW - DAY, start=NOW - 9 * DAY),
        MIDDLE_DER,
    )
    known = trusted(certificates=(ROOT_DER, ended.ca(ended, end=NOW - DAY, start=NOW - 9 * DAY), *crossed))
    assert judged(from_maker(kind), known=known).anchor == "CN=maker root"


def test_a_web_of_authorities_ends_in_bounded_work() -> None:
    makers = [Maker("one name for all") for _ in range(14)]
    web = tuple(one.ca(other) for one in makers for other in makers if one is not other)
    with pytest.raises(EkUntrusted):
        judged(makers[0].ek(rsa_key(), "critical-policy"), known=trusted(certificates=(ROOT_DER, *web)))


def test_an_authoritys_certificate_is_no_ek_certificate() -> None:
    device = Maker("device")
    with pytest.raises(EkUntrusted, match="not marked"):
        trusted().verify(read_certificate(ROOT.ca(device)), (), policy().crl, NOW)


def test_what_can_not_be_read_is_refused_with_what_to_do() -> None:
    for raw in (b"", b"\x30\x00", b"\x30\x82\x01\x00" + bytes(256), bytes(20_000)):
        with pytest.raises(EkUntrusted) as found:
            judged(raw)
        assert found.value.hint


# --- policies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trust", "certificate", "listed", "wanted"),
    [
        ("certificate", "good", False, "certificate"),
        ("certificate", "foreign", True, EkUntrusted),
        ("certificate", "none", True, EkUntrusted),
        ("certificate-or-list", "good", False, "certificate"),
        ("certificate-or-list", "foreign", True, "list"),
        ("certificate-or-list", "foreign", False, EkUntrusted),
        ("certificate-or-list", "none", True, "list"),
        ("certificate-or-list", "none", False, EkUntrusted),
        ("list", "good", False, EkUntrusted),
        ("list", "good", True, "list"),
        ("list", "foreign", True, "list"),
        ("list", "none", True, "list"),
        ("if-present", "good", False, "certificate"),
        ("if-present", "foreign", True, EkUntrusted),
        ("if-present", "none", False, "none"),
        ("if-present", "none", True, "list"),
        ("none", "good", False, "none"),
        ("none", "foreign", False, "none"),
        ("none", "none", False, "none"),
    ],
)
def test_what_a_policy_makes_of_certificate_and_list(
    trust: str, certificate: str, listed: bool, wanted: str | type[HallmarkError]
) -> None:
    made = {"good": from_maker(), "foreign": STRANGER.ek(rsa_key()), "none": None}[certificate]
    if isinstance(wanted, str):
        verdict = judged(made, trust, listed=listed)
        assert verdict.trust == wanted
        assert verdict.lot == ("lot-7" if listed else "")
        assert verdict.facts()["ek_trust"] == wanted
    else:
        with pytest.raises(wanted) as found:
            judged(made, trust, listed=listed)
        assert found.value.hint


def test_the_record_says_why_a_certificate_was_passed_over() -> None:
    verdict = judged(STRANGER.ek(rsa_key()), "certificate-or-list", listed=True)
    assert any("no chain" in note for note in verdict.notes)
    assert verdict.list_sha256 == "07" * 32


# --- revocation lists -----------------------------------------------------------------------------------------------


OLD: Final = {"start": NOW - 60 * DAY, "end": NOW - 30 * DAY}


@pytest.mark.parametrize("crl", ["warn", "refuse", "off"])
@pytest.mark.parametrize("trust", ["certificate", "certificate-or-list", "list", "if-present", "none"])
@pytest.mark.parametrize("kind", ["plain", "oaep"])
def test_a_revoked_certificate_is_refused_under_every_policy(crl: str, trust: str, kind: str) -> None:
    certificate = from_maker(kind, serial=4711)
    for dates in ({}, OLD):
        known = trusted(MIDDLE.crl(4711, **dates), ROOT.crl())
        with pytest.raises(EkRevoked, match="1267"):
            judged(certificate, trust, crl, known=known, listed=True)


def test_a_revoked_intermediate_revokes_what_it_issued() -> None:
    known = trusted(ROOT.crl(read_certificate(MIDDLE_DER).serial), MIDDLE.crl())
    with pytest.raises(EkRevoked):
        judged(from_maker(), known=known)


@pytest.mark.parametrize(
    ("lists", "state"),
    [
        ((ROOT.crl(), MIDDLE.crl()), "good"),
        ((ROOT.crl(**OLD), MIDDLE.crl()), "stale"),
        ((ROOT.crl(), MIDDLE.crl(**OLD)), "stale"),
        ((ROOT.crl(), MIDDLE.crl(**OLD), MIDDLE.crl()), "good"),
        ((ROOT.crl(),), "missing"),
        ((), "missing"),
    ],
)
def test_stale_and_missing_lists_warn_or_refuse_as_the_recipe_says(
    lists: tuple[bytes, ...], state: str
) -> None:
    known = trusted(*lists)
    warned = judged(from_maker(), crl="warn", known=known)
    assert warned.crl == state
    assert bool(warned.notes) == (state != "good")
    assert judged(from_maker(), crl="off", known=known).crl == "off"
    if state == "good":
        assert judged(from_maker(), crl="refuse", known=known).crl == "good"
    else:
        with pytest.raises(EkUntrusted, match="revocation list") as found:
            judged(from_maker(), crl="refuse", known=known)
        assert "bundle" in found.value.hint


def test_a_list_that_another_key_signed_in_the_makers_name_counts_for_nothing() -> None:
    impostor = Maker("maker intermediate")
    known = trusted(impostor.crl(4711), ROOT.crl())
    assert judged(from_maker(serial=4711), known=known).crl == "missing"


# --- the EK's public area --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", [0x000300A2, 0x000200B2, 0x000100B2, 0x000700B2, 0x00000000])
def test_a_key_with_other_attributes_is_no_endorsement_key(attributes: int) -> None:
    """The same RSA key under another Name would be another unit."""
    with pytest.raises(ProtocolViolation):
        judged(from_maker(), public=ek_public(rsa_key(), attributes))


def test_the_name_is_the_tpms_own() -> None:
    assert read_ek_public(PUBLIC).name == read_ek_name(PUBLIC) == ek_name(PUBLIC)


@given(st.integers(0, len(PUBLIC) - 1), st.integers(0, 255), st.booleans())
def test_a_damaged_public_area_is_refused_or_has_another_name(at: int, value: int, cut: bool) -> None:
    damaged = PUBLIC[:at] if cut else PUBLIC[:at] + bytes([value]) + PUBLIC[at + 1 :]
    if damaged == PUBLIC:
        return
    try:
        found = read_ek_public(damaged)
    except ProtocolViolation:
        return
    assert found.name != ek_name(PUBLIC)


@given(st.binary(max_size=600))
def test_no_octets_bring_out_anything_but_our_error(raw: bytes) -> None:
    for public in (raw, len(raw).to_bytes(2, "big") + raw):
        with pytest.raises(ProtocolViolation):
            read_ek_public(public)


OAEP: Final = from_maker("oaep critical-policy")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(st.integers(0, len(OAEP) - 1), st.integers(1, 255))
def test_a_damaged_certificate_of_the_fallback_is_refused_or_is_what_was_signed(at: int, flip: int) -> None:
    damaged = OAEP[:at] + bytes([OAEP[at] ^ flip]) + OAEP[at + 1 :]
    try:
        verdict = judged(damaged)
    except (EkUntrusted, EkMismatch):
        return
    assert verdict.trust == "certificate"
    assert read_certificate(damaged).signed == read_certificate(OAEP).signed


def test_the_clock_decides_on_dates() -> None:
    later = Judge(trusted, lambda _name: None, lambda: NOW + dt.timedelta(days=3650))
    with pytest.raises(EkUntrusted, match="not valid today"):
        later.judge(policy(), PUBLIC, from_maker("ber-boolean"), ())
