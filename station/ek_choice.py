"""Which of a TPM's endorsement keys a unit is known by and enrolled with. Pure: report in, choice or question out.

A TPM has as many EKs as there are templates. The right one is the one that the EK certificate names; without a
certificate, the one of the TCG's default template. Readers look at 0x81010001 first, and somebody before us may have
put another key there, so what is there has to be that key, or is replaced where the recipe says so, or refuses the
board with what an engineer needs to know. Nothing that talks to a TPM, and no trust in a certificate, comes in here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from hal.errors import EkMismatch, EkUntrusted
from hal.types import EkOrigin, EndorsementKey, EndorsementReport

EK_HANDLE: Final = 0x81010001
"""Where readers look first (TCG TPM v2.0 Provisioning Guidance, 7.8)."""
EMPTY_UNIQUE: Final = EkOrigin.EMPTY_UNIQUE.value
"""The L-1 template with a `unique` of no octets, as some cloud SDKs derive their EK (azure-iot-sdk-c#2534)."""
UNKNOWN: Final = "?"
"""`EndorsementKey.template` of a key that is of none of the TCG's templates."""

ALGORITHMS: Final[dict[str, tuple[str, ...]]] = {
    "rsa2048": ("L-1", "H-1"),
    "p256": ("L-2", "H-2"),
    "p384": ("H-3",),
    "p521": ("H-4",),
    "rsa3072": ("H-6",),
    "rsa4096": ("H-7",),
}
"""Templates by the algorithm of their keys, the one to prefer first (TCG EK Credential Profile 2.4, B.3, B.4)."""
NAMED: Final = ("rsa2048", "p256")
"""Those that a recipe can ask for by name; the others only by "any"."""
ANY: Final = "any"

# TPMT_PUBLIC behind TPM2B_PUBLIC's size: type (2), nameAlg (2), objectAttributes (4), authPolicy (2 + n), parameters.
_RSA, _ECC = 0x0001, 0x0023
_RSA_BITS: Final = {2048: "rsa2048", 3072: "rsa3072", 4096: "rsa4096"}
_CURVES: Final = {0x0003: "p256", 0x0004: "p384", 0x0005: "p521"}
_NULL: Final = 0x0010


class Verdict(enum.StrEnum):
    """What became of one key of the report."""

    CHOSEN = "chosen"
    EVICTED = "to be replaced"
    PASSED_OVER = "passed over"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One key that was looked at, and why it is the one or isn't. `what` names it in a technician's words."""

    name: bytes
    algorithm: str
    template: str
    handle: int | None
    certified: bool
    verdict: Verdict
    what: str

    def line(self) -> str:
        """For the record: Name (its first octets), verdict, description."""
        return f"{self.name.hex()[:20]} {self.verdict}: {self.what}"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the recipe says. `algorithm`: a key of ALGORITHMS, or "any". `certificate`: required, if-present, none."""

    algorithm: str = "rsa2048"
    certificate: str = "required"
    replace: bool = False
    """Whether another key at 0x81010001 may be evicted for the right one."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates that may be enrolled, the one to prefer first: the default ones before those in the high range."""
        if self.algorithm != ANY:
            return ALGORITHMS[self.algorithm]
        return tuple(sorted((name for names in ALGORITHMS.values() for name in names), key=_preference))

    def takes(self, algorithm: str) -> bool:
        return algorithm == self.algorithm if self.algorithm != ANY else algorithm in ALGORITHMS


@dataclass(frozen=True, slots=True)
class Derive:
    """The choice needs to know the EK of this template: derive it and ask again. Takes 10 s and more on real chips."""

    template: str


@dataclass(frozen=True, slots=True)
class Choice:
    """`ek` is the one to enroll; `evict` is what has to leave 0x81010001 for it, None when nothing has to."""

    ek: EndorsementKey
    evict: EndorsementKey | None
    candidates: tuple[Candidate, ...]

    def lines(self) -> list[str]:
        return [candidate.line() for candidate in self.candidates]


def choose(report: EndorsementReport, rules: Rules) -> Choice | Derive:
    """The EK to enroll, or the template whose EK has to be known before that can be said.

    EkUntrusted without a certificate where one is required; EkMismatch for a certificate of another key, and for
    another key at 0x81010001. Asks for each template at most once, and for none that doesn't matter.
    """
    right = _certified(report, rules)
    if right is None:
        right = _uncertified(report, rules)
    if isinstance(right, Derive):
        return right
    there = _at_handle(report)
    if there is not None and there.name == right.name:
        right = replace(there, template=right.template, certificate=there.certificate or right.certificate)
        return Choice(right, None, _candidates(report, right, None))
    if there is not None:
        question = _who_is(there, report)
        if question is not None:
            return question
        if not rules.replace:
            raise _conflict(there, right, report, rules)
    if right.origin is EkOrigin.PERSISTENT:
        # It is at another handle. What goes to 0x81010001 is derived again, so it has to be known that it can be.
        if right.template in rules.templates and right.template not in report.derived:
            return Derive(right.template)
        raise EkMismatch(
            f"the endorsement key that the EK certificate names is at {_place(right)} only,"
            " and no TCG template makes it",
            hint="Hand the board to an engineer: only its TPM's maker can say how this key gets to 0x81010001.",
        )
    return Choice(right, there, _candidates(report, right, there))


def algorithm_of(public: bytes) -> str:
    """The algorithm of a TPM2B_PUBLIC as ALGORITHMS spells it, else "other". Reads no further than its parameters."""
    kind, policy = int.from_bytes(public[2:4], "big"), int.from_bytes(public[10:12], "big")
    at = 12 + policy
    # TPMT_SYM_DEF_OBJECT: algorithm (2), and for others than TPM_ALG_NULL key bits (2) and mode (2).
    at += 2 if int.from_bytes(public[at : at + 2], "big") == _NULL else 6
    # TPMT_RSA_SCHEME or TPMT_ECC_SCHEME: scheme (2), and for others than TPM_ALG_NULL a hash (2).
    at += 2 if int.from_bytes(public[at : at + 2], "big") == _NULL else 4
    value = int.from_bytes(public[at : at + 2], "big")
    found = {_RSA: _RSA_BITS, _ECC: _CURVES}.get(kind, {}).get(value)
    return found or "other"


# --- which one is right -----------------------------------------------------------------------------------------


def _certified(report: EndorsementReport, rules: Rules) -> EndorsementKey | Derive | None:
    """The key that a certificate in NV names; None when no certificate speaks of a key that may be enrolled."""
    named = [
        key for key in report.keys if key.certificate is not None and rules.takes(algorithm_of(key.public))
    ]
    for certificate in sorted(report.certificates, key=lambda item: _preference(item.template)):
        if named:
            break
        if certificate.template in rules.templates and certificate.template not in report.derived:
            return Derive(certificate.template)
    if named:
        return min(
            named,
            key=lambda key: (key.handle != EK_HANDLE, _preference(key.template), key.handle is not None),
        )
    if rules.certificate == "none":
        return None
    stray = [item for item in report.certificates if item.template in rules.templates]
    if stray:
        raise EkMismatch(
            f"the EK certificate in NV (0x{stray[0].index:08x}) belongs to another key than any that this TPM derives",
            hint="Set the board aside: its EK certificate is another TPM's, or was written over. An engineer asks the"
            " TPM's vendor, or takes a recipe for TPMs without a certificate.",
        )
    if rules.certificate == "required":
        raise _no_certificate(report, rules)
    return None


def _no_certificate(report: EndorsementReport, rules: Rules) -> EkUntrusted:
    others = sorted({_algorithm_by_template(item.template) for item in report.certificates})
    if others:
        return EkUntrusted(
            f"the TPM's endorsement key can't be trusted: it has an EK certificate for {' and '.join(others)} only,"
            f" and the recipe enrolls {rules.algorithm}",
            hint="Set the board aside; where the field client takes such a key, an engineer writes"
            f' ek = "{others[0] if others[0] in NAMED else ANY}" into the recipe\'s tpm-identity step.',
        )
    return EkUntrusted(
        "the TPM's endorsement key can't be trusted: it has no EK certificate",
        hint="Set the board aside; for TPMs that come without one, an engineer takes a recipe that trusts the vendor's"
        " list of EKs instead.",
    )


def _uncertified(report: EndorsementReport, rules: Rules) -> EndorsementKey | Derive:
    """The key of the default template: what every other reader derives who knows nothing else of this TPM."""
    defaults = [name for name in rules.templates if not name.startswith("H-")] or list(rules.templates)
    for template in defaults:
        if template not in report.derived:
            return Derive(template)
        found = next((key for key in report.keys if _is_derived(key) and key.template == template), None)
        if found is not None:
            return found
    raise EkUntrusted(
        f"the TPM offers no {rules.algorithm if rules.algorithm != ANY else 'known'} endorsement key",
        hint="Set the board aside: its TPM doesn't know the algorithm that the recipe enrolls.",
    )


# --- what is at 0x81010001 --------------------------------------------------------------------------------------


def _who_is(there: EndorsementKey, report: EndorsementReport) -> Derive | None:
    """What has to be derived before it can be said which key was put there."""
    algorithm = algorithm_of(there.public)
    default = {"rsa2048": "L-1", "p256": "L-2"}.get(algorithm)
    if default is None or _twin(there, report) is not None or there.certificate is not None:
        return None
    if default not in report.derived:
        return Derive(default)
    if algorithm == "rsa2048" and EMPTY_UNIQUE not in report.derived:
        return Derive(EMPTY_UNIQUE)
    return None


def _conflict(
    there: EndorsementKey, right: EndorsementKey, report: EndorsementReport, rules: Rules
) -> EkMismatch:
    certified = "which the EK certificate names" if right.certificate is not None else "the TCG's default"
    algorithm = algorithm_of(there.public)
    other = (
        f' takes ek = "{algorithm if algorithm in NAMED else ANY}" if that is the key to enroll,'
        if there.certificate is not None and not rules.takes(algorithm)
        else " finds out who needs it, then"
    )
    return EkMismatch(
        f"the key at 0x{EK_HANDLE:08x} is not the endorsement key to enroll: there is {_what(there, report)};"
        f" the right one is {_what(right, report)}, {certified}",
        hint=f"Set the board aside: somebody persisted another key at 0x{EK_HANDLE:08x}. An engineer{other}"
        " writes replace_persisted = true into the recipe's tpm-identity step, or evicts it by hand.",
    )


def _at_handle(report: EndorsementReport) -> EndorsementKey | None:
    return next((key for key in report.keys if key.handle == EK_HANDLE), None)


def _is_derived(key: EndorsementKey) -> bool:
    return key.origin is not EkOrigin.PERSISTENT


def _twin(key: EndorsementKey, report: EndorsementReport) -> EndorsementKey | None:
    """The derived key that `key` is."""
    return next((item for item in report.keys if _is_derived(item) and item.name == key.name), None)


# --- words ------------------------------------------------------------------------------------------------------


def _what(key: EndorsementKey, report: EndorsementReport) -> str:
    """One key in words: algorithm, which template makes it, certificate, place."""
    algorithm = algorithm_of(key.public)
    twin = key if _is_derived(key) else _twin(key, report)
    if twin is not None and twin.origin is EkOrigin.EMPTY_UNIQUE:
        kind = f"the {algorithm} EK with an empty `unique` that some cloud SDKs make"
    elif twin is not None:
        kind = f"the {algorithm} EK of the TCG template {twin.template}"
    elif key.certificate is not None:
        kind = f"the {algorithm} EK of an EK certificate"
    elif key.handle == EK_HANDLE and algorithm in ("rsa2048", "p256") and EMPTY_UNIQUE in report.derived:
        kind = f"a foreign {algorithm} key that no known template makes"
    else:
        kind = f"another {algorithm} key"
    return f"{kind} ({_place(key)})"


def _place(key: EndorsementKey) -> str:
    return f"0x{key.handle:08x}" if key.handle is not None else "not persisted"


def _distinct(report: EndorsementReport) -> list[EndorsementKey]:
    """Each key once: the persisted form of one that was derived too."""
    return [
        key
        for key in report.keys
        if not _is_derived(key)
        or not any(other.name == key.name and not _is_derived(other) for other in report.keys)
    ]


def _candidates(
    report: EndorsementReport, right: EndorsementKey, evict: EndorsementKey | None
) -> tuple[Candidate, ...]:
    return tuple(_candidate(key, report, right, evict) for key in _distinct(report))


def _candidate(
    key: EndorsementKey, report: EndorsementReport, right: EndorsementKey, evict: EndorsementKey | None
) -> Candidate:
    if key.name == right.name:
        verdict = Verdict.CHOSEN
    elif evict is not None and key.name == evict.name and key.handle == EK_HANDLE:
        verdict = Verdict.EVICTED
    else:
        verdict = Verdict.PASSED_OVER
    certified = key.certificate is not None
    what = _what(key, report) + (", named by the EK certificate" if certified else ", without a certificate")
    return Candidate(key.name, algorithm_of(key.public), key.template, key.handle, certified, verdict, what)


def _preference(template: str) -> tuple[bool, str]:
    """L-1, L-2, H-1 ... before what is no template of the TCG's."""
    return (not template.startswith("L-"), template)


def _algorithm_by_template(template: str) -> str:
    return next((name for name, templates in ALGORITHMS.items() if template in templates), "other")
