"""Which EK is the right one: every situation that boards come in with, and what holds whatever a TPM reports."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import EkMismatch, EkUntrusted, HallmarkError
from hal.types import EkCertificate, EkOrigin, EndorsementKey, EndorsementReport
from station.ek_choice import (
    ALGORITHMS,
    ANY,
    EK_HANDLE,
    EMPTY_UNIQUE,
    Choice,
    Derive,
    Rules,
    Verdict,
    algorithm_of,
    choose,
)

TEMPLATES = (*(name for names in ALGORITHMS.values() for name in names), EMPTY_UNIQUE)
INDEXES = {"L-1": 0x01C00002, "L-2": 0x01C0000A, "H-1": 0x01C00012, "H-2": 0x01C00014, "H-3": 0x01C00016}
HEADS = {
    "rsa2048": "0001 000b 000300b2 0000 0006 0080 0043 0010 0800 00000000",
    "p256": "0023 000b 000300b2 0000 0006 0080 0043 0010 0003 0010",
    "p384": "0023 000c 000300b2 0000 0006 0080 0043 0010 0004 0010",
}


def public(algorithm: str, seed: str) -> bytes:
    area = bytes.fromhex(HEADS[algorithm]) + hashlib.sha256(seed.encode()).digest()
    return len(area).to_bytes(2, "big") + area


def algorithm_by(template: str) -> str:
    return next((name for name, names in ALGORITHMS.items() if template in names), "rsa2048")


def key(template: str, handle: int | None = None, *, foreign: str = "") -> EndorsementKey:
    """The EK of `template`; `foreign` one has its parameters and another key."""
    area = public(algorithm_by(template), foreign or template)
    origin = EkOrigin.EMPTY_UNIQUE if template == EMPTY_UNIQUE else EkOrigin.TEMPLATE
    known = "?" if template == EMPTY_UNIQUE else template
    if handle is not None:
        return EndorsementKey(
            area, b"\x00\x0b" + hashlib.sha256(area).digest(), EkOrigin.PERSISTENT, known, handle
        )
    return EndorsementKey(area, b"\x00\x0b" + hashlib.sha256(area).digest(), origin, template)


class Chip:
    """A TPM by what it has: persisted keys, certificates by template, templates that it can't make."""

    def __init__(
        self,
        persisted: dict[int, EndorsementKey] | None = None,
        certified: tuple[str, ...] = (),
        foreign_certificates: tuple[str, ...] = (),
        lacks: tuple[str, ...] = (),
    ) -> None:
        self.persisted, self.lacks = persisted or {}, lacks
        self.certificates = tuple(
            EkCertificate(INDEXES[name], name, f"certificate {name}".encode())
            for name in (*certified, *foreign_certificates)
        )
        self.named = {key(name).name: f"certificate {name}".encode() for name in certified}
        self.derived: list[str] = []

    def report(self) -> EndorsementReport:
        keys = [*self.persisted.values(), *(key(name) for name in self.derived if name not in self.lacks)]
        return EndorsementReport(
            tuple(replace(item, certificate=self.named.get(item.name)) for item in keys),
            self.certificates,
            derived=tuple(self.derived),
        )

    def choice(self, rules: Rules) -> Choice:
        while isinstance(found := choose(self.report(), rules), Derive):
            assert found.template not in self.derived, "asked twice"
            self.derived.append(found.template)
        return found


def at(template: str, *, foreign: str = "") -> dict[int, EndorsementKey]:
    return {EK_HANDLE: key(template, EK_HANDLE, foreign=foreign)}


# --- what boards come in with -----------------------------------------------------------------------------------


def test_a_persisted_ek_that_its_certificate_names_is_chosen_without_deriving_any() -> None:
    chip = Chip(at("L-1"), ("L-1", "H-3"))
    choice = chip.choice(Rules())
    assert (choice.ek.name, choice.ek.handle, choice.evict) == (key("L-1").name, EK_HANDLE, None)
    assert chip.derived == []


def test_nothing_persisted_after_a_clear_the_certified_one_is_derived_and_no_other() -> None:
    chip = Chip({}, ("L-1", "H-3"))
    assert chip.choice(Rules()).ek.origin is EkOrigin.TEMPLATE
    assert chip.derived == ["L-1"]


def test_a_chip_with_only_a_high_range_certificate_enrolls_that_ek() -> None:
    chip = Chip({}, ("H-1",))
    assert chip.choice(Rules()).ek.template == "H-1"
    assert chip.derived == ["H-1"]


def test_the_low_range_goes_before_the_high_range_and_rsa_before_ecc() -> None:
    assert Chip({}, ("H-1", "L-1")).choice(Rules()).ek.template == "L-1"
    assert Chip({}, ("H-3", "L-2", "L-1")).choice(Rules(ANY)).ek.template == "L-1"
    assert Chip({}, ("H-3", "L-2")).choice(Rules(ANY)).ek.template == "L-2"


def test_with_any_algorithm_the_certified_key_that_is_persisted_is_taken() -> None:
    assert Chip(at("L-2"), ("L-1", "L-2")).choice(Rules(ANY)).ek.template == "L-2"


@pytest.mark.parametrize("certified", [("L-1",), ()])
def test_the_empty_unique_ek_at_the_handle_is_refused_and_named(certified: tuple[str, ...]) -> None:
    chip = Chip(at(EMPTY_UNIQUE), certified)
    with pytest.raises(EkMismatch) as found:
        chip.choice(Rules(certificate="if-present"))
    said = str(found.value)
    assert "empty `unique` that some cloud SDKs make (0x81010001)" in said
    assert "TCG template L-1 (not persisted)" in said
    assert "replace_persisted = true" in found.value.hint


def test_a_foreign_key_at_the_handle_is_refused_and_called_foreign() -> None:
    with pytest.raises(EkMismatch, match="a foreign rsa2048 key that no known template makes"):
        Chip(at("L-1", foreign="x"), ("L-1",)).choice(Rules())


def test_an_ecc_ek_at_the_handle_is_refused_for_rsa_and_the_other_way_out_is_named() -> None:
    with pytest.raises(EkMismatch, match="the p256 EK of") as found:
        Chip(at("L-2"), ("L-1", "L-2")).choice(Rules())
    assert 'ek = "p256"' in found.value.hint


@pytest.mark.parametrize("there", [at(EMPTY_UNIQUE), at("L-1", foreign="x"), at("L-2")])
def test_where_the_recipe_says_so_what_is_there_is_to_be_replaced_and_on_record(
    there: dict[int, EndorsementKey],
) -> None:
    choice = Chip(there, ("L-1",)).choice(Rules(replace=True))
    assert choice.ek.name == key("L-1").name
    assert choice.evict is not None
    assert choice.evict.name == there[EK_HANDLE].name
    verdicts = {candidate.name: candidate.verdict for candidate in choice.candidates}
    assert verdicts[choice.ek.name] is Verdict.CHOSEN
    assert verdicts[choice.evict.name] is Verdict.EVICTED
    assert any("to be replaced" in line for line in choice.lines())


def test_no_certificate_at_all_is_refused_or_the_default_templates_key_is_taken() -> None:
    with pytest.raises(EkUntrusted, match="it has no EK certificate"):
        Chip(at("L-1")).choice(Rules())
    for policy in ("if-present", "none"):
        chip = Chip(at("L-1"))
        assert chip.choice(Rules(certificate=policy)).ek.handle == EK_HANDLE
        assert chip.derived == ["L-1"], "only deriving it tells the TCG's key from a cloud SDK's"


def test_a_certificate_for_ecc_only_is_no_certificate_for_rsa() -> None:
    with pytest.raises(EkUntrusted, match="an EK certificate for p256 only") as found:
        Chip(at("L-1"), ("L-2",)).choice(Rules())
    assert 'ek = "p256"' in found.value.hint
    assert Chip({}, ("L-2",)).choice(Rules("p256")).ek.template == "L-2"
    with pytest.raises(EkUntrusted, match="p384 only") as found:
        Chip(at("L-1"), ("H-3",)).choice(Rules())
    assert 'ek = "any"' in found.value.hint


def test_a_certificate_of_another_tpm_is_refused_unless_certificates_do_not_matter() -> None:
    for policy in ("required", "if-present"):
        with pytest.raises(EkMismatch, match="0x01c00002"):
            Chip(at("L-1"), foreign_certificates=("L-1",)).choice(Rules(certificate=policy))
    assert (
        Chip(at("L-1"), foreign_certificates=("L-1",)).choice(Rules(certificate="none")).ek.handle
        == EK_HANDLE
    )


def test_a_certified_ek_at_another_handle_is_derived_again_before_it_is_promised() -> None:
    chip = Chip({0x81010002: key("L-1", 0x81010002)}, ("L-1",))
    assert chip.choice(Rules()).ek.handle is None
    assert chip.derived == ["L-1"]


def test_a_chip_without_the_algorithm_is_refused() -> None:
    with pytest.raises(EkUntrusted, match="offers no p256"):
        Chip({}, lacks=("L-2",)).choice(Rules("p256", "none"))


# --- what always holds ------------------------------------------------------------------------------------------

keys = st.sampled_from(["L-1", "L-2", "H-1", "H-3", EMPTY_UNIQUE]).flatmap(
    lambda name: st.sampled_from(["", "x"]).map(lambda foreign: (name, foreign))
)
chips = st.builds(
    lambda first, second, certified, foreign, lacks: Chip(
        {
            handle: key(item[0], handle, foreign=item[1])
            for handle, item in ((EK_HANDLE, first), (0x81010016, second))
            if item is not None
        },
        tuple(certified),
        tuple(foreign - certified),
        tuple(lacks),
    ),
    st.none() | keys,
    st.none() | keys,
    st.sets(st.sampled_from(sorted(INDEXES))),
    st.sets(st.sampled_from(sorted(INDEXES))),
    st.sets(st.sampled_from(TEMPLATES)),
)
rules = st.builds(
    Rules,
    st.sampled_from(["rsa2048", "p256", ANY]),
    st.sampled_from(["required", "if-present", "none"]),
    st.booleans(),
)


def outcome(chip: Chip, rules: Rules) -> tuple[Choice | None, HallmarkError | None]:
    try:
        return chip.choice(rules), None
    except HallmarkError as error:
        return None, error


@given(chips, rules)
def test_whatever_a_tpm_has_the_choice_is_right_or_refused_with_a_sentence(chip: Chip, rules: Rules) -> None:
    choice, refusal = outcome(chip, rules)
    if choice is None:
        assert isinstance(refusal, EkMismatch | EkUntrusted)
        assert refusal.hint
        assert refusal.hint != type(refusal).default_hint, "each refusal says what to do in its own case"
        return
    assert rules.takes(algorithm_of(choice.ek.public))
    assert choice.ek.certificate is not None or rules.certificate != "required"
    there = chip.persisted.get(EK_HANDLE)
    if choice.evict is None:
        assert there is None or there.name == choice.ek.name, "the wrong key would stay where readers look"
    else:
        assert rules.replace
        assert there is not None
        assert choice.evict.name == there.name != choice.ek.name
    if choice.ek.handle is None:
        assert choice.ek.origin is EkOrigin.TEMPLATE, "what is to be persisted can be derived again"
    else:
        assert choice.ek.handle == EK_HANDLE
    chosen = [candidate for candidate in choice.candidates if candidate.verdict is Verdict.CHOSEN]
    assert {candidate.name for candidate in chosen} == {choice.ek.name}


@given(chips, rules)
def test_a_certified_key_is_never_passed_over_for_one_that_is_not(chip: Chip, rules: Rules) -> None:
    choice, _ = outcome(chip, rules)
    if choice is not None and choice.ek.certificate is None:
        assert not any(
            item.certificate and rules.takes(algorithm_of(item.public)) for item in chip.report().keys
        )


@given(st.binary(max_size=80))
def test_an_algorithm_is_read_from_any_octets_without_a_fault(octets: bytes) -> None:
    assert algorithm_of(octets) in {*ALGORITHMS, "other"}
