"""Name constraints and critical extensions: what a CA above forbids is refused before anything is signed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ConfigError, ProfileViolation
from station.signer import ledger
from station.signer.authority import Authority, chain_from, spki_of
from station.signer.names import names_refused
from station.signer.policy import judge
from station.signer.profiles import Profile, load_profile
from tests.ca_parts import NOW, PROFILES, YEAR, Ca
from tests.unit.test_signer_generations import Station

ROOT, MIDDLE, ISSUING = Ca("root"), Ca("middle"), Ca("issuing")
ACME = "Example Devices"


def organization(value: str) -> x509.DirectoryName:
    return x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, value)]))


def rules(
    permitted: list[x509.GeneralName] | None = None, excluded: list[x509.GeneralName] | None = None
) -> x509.NameConstraints:
    return x509.NameConstraints(permitted, excluded)


def refused(made: x509.NameConstraints, name: x509.GeneralName) -> bool:
    above = ROOT.signs(ROOT, extensions=[made])
    subject = name.value if isinstance(name, x509.DirectoryName) else x509.Name([])
    return bool(names_refused([above], subject, [] if subject is name.value else [name]))


@pytest.mark.parametrize(
    ("base", "name", "within"),
    [
        (x509.DNSName("example.com"), x509.DNSName("example.com"), True),
        (x509.DNSName("example.com"), x509.DNSName("GW.Example.COM"), True),
        (x509.DNSName("example.com"), x509.DNSName("badexample.com"), False),
        (x509.DNSName(".example.com"), x509.DNSName("gw.example.com"), True),
        (x509.DNSName(".example.com"), x509.DNSName("example.com"), False),
        (x509.DNSName(""), x509.DNSName("anything.org"), True),
        (x509.UniformResourceIdentifier("h.org"), x509.UniformResourceIdentifier("coap://h.org/x"), True),
        (x509.UniformResourceIdentifier("h.org"), x509.UniformResourceIdentifier("coap://a.h.org/x"), False),
        (x509.UniformResourceIdentifier(".h.org"), x509.UniformResourceIdentifier("coap://a.h.org"), True),
        (x509.UniformResourceIdentifier(".h.org"), x509.UniformResourceIdentifier("coap://h.org"), False),
        (organization("Acme"), organization("ACME"), True),
        (organization("Acme  Inc"), organization(" acme inc "), True),
        (organization("Acme"), organization("Acme 2"), False),
    ],
)
def test_a_name_is_within_a_subtree_or_not(
    base: x509.GeneralName, name: x509.GeneralName, within: bool
) -> None:
    assert refused(rules(permitted=[base]), name) is not within
    assert refused(rules(excluded=[base]), name) is within


def test_kinds_that_are_not_constrained_pass_and_those_that_can_not_be_judged_do_not() -> None:
    mail = x509.RFC822Name("a@example.com")
    assert not refused(rules(permitted=[x509.DNSName("example.com")]), mail)
    assert refused(rules(permitted=[mail]), mail)
    for uri in ("urn:x:1", "coap://192.0.2.1/x", "coap://[2001:db8::1]/"):
        assert refused(
            rules(permitted=[x509.UniformResourceIdentifier(".h.org")]), x509.UniformResourceIdentifier(uri)
        )


def test_a_common_name_that_looks_like_a_host_is_held_to_dns_constraints_as_openssl_does() -> None:
    above = [ROOT.signs(ROOT, extensions=[rules(permitted=[x509.DNSName("example.com")])])]
    for name, bad in (("gw.other.org", True), ("gw.example.com", False), ("device-1", False)):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        assert bool(names_refused(above, subject, [])) is bad
        assert not names_refused(above, subject, [x509.DNSName("gw.example.com")])


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_texts_are_judged(base: str, name: str) -> None:
    try:
        made = rules(permitted=[x509.UniformResourceIdentifier(base)])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name)]
    except ValueError:
        return
    assert isinstance(names_refused([ROOT.signs(ROOT, extensions=[made])], x509.Name([]), names), str)


def constrained(**where: x509.NameConstraints) -> Authority:
    """root, middle, issuing, with constraints in those named."""
    root = ROOT.signs(ROOT, end=NOW + 30 * YEAR)
    middle = ROOT.signs(
        MIDDLE, end=NOW + 29 * YEAR, extensions=[where["middle"]] if "middle" in where else []
    )
    issuing = MIDDLE.signs(
        ISSUING, end=NOW + 28 * YEAR, extensions=[where["issuing"]] if "issuing" in where else []
    )
    return chain_from([middle, root, issuing], None, spki_of(issuing), NOW)


def profile(folder: Path, san: str = "") -> Profile:
    text = (PROFILES / "client-p256.toml").read_text() + (f'san = ["{san}"]\n' if san else "")
    (folder / "named.toml").write_text(text)
    return load_profile(folder, "named")


@pytest.mark.parametrize("where", ["middle", "issuing"])
def test_check_names_file_and_line_of_a_profile_that_a_ca_above_forbids(tmp_path: Path, where: str) -> None:
    # Constraints on directory names are checked on the CAs below as well, whose names have no organization here.
    fine = constrained(**{where: rules(permitted=[x509.DNSName("example.com")])})
    assert judge(profile(tmp_path, "dns:{registration_id}.example.com"), fine, NOW).problem is None
    problem = judge(profile(tmp_path, "dns:{registration_id}.example.org"), fine, NOW).problem
    assert problem is not None
    assert (problem.file, problem.line, problem.key) == (
        str(tmp_path / "named.toml"),
        18,
        "extensions.san[0]",
    )
    assert "nameConstraints" in str(problem)
    banned = constrained(**{where: rules(excluded=[organization(ACME)])})
    problem = judge(profile(tmp_path), banned, NOW).problem
    assert problem is not None
    assert problem.key == "subject"
    assert ACME in str(problem)


def test_a_ca_whose_own_name_the_ca_above_forbids_is_not_installed() -> None:
    with pytest.raises(ConfigError, match="may not be there"):
        constrained(middle=rules(permitted=[organization(ACME)]))


def test_nothing_is_intended_for_a_name_that_a_ca_forbids(tmp_path: Path) -> None:
    with ledger.opened(tmp_path) as book:
        station = Station(tmp_path, book)
        csr = station.request().csr
        station.install(station.certify(csr, extensions=[rules(excluded=[organization(ACME)])]))
        with pytest.raises(ProfileViolation, match="excludes"):
            station.issue("u1")
        assert book.counts() == (0, 0)
        assert station.token.signed == ["issuing-ca"]  # the request's, and no certificate's


def test_a_critical_extension_that_nobody_understands_is_refused_and_another_is_not() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.7"), b"\x05\x00")
    root = ROOT.signs(ROOT)
    middle = ROOT.signs(MIDDLE, extensions=[unknown])
    issuing = MIDDLE.signs(ISSUING)
    with pytest.raises(ConfigError, match=r"critical extension.*1\.3\.6\.1\.4\.1\.99999\.7"):
        chain_from([root, middle, issuing], None, spki_of(issuing), NOW)
    asks = ROOT.signs(MIDDLE, extensions=[x509.PolicyConstraints(0, None)])
    with pytest.raises(ConfigError, match="requireExplicitPolicy"):
        chain_from([root, asks, issuing], None, spki_of(issuing), NOW)
    fine = ROOT.signs(MIDDLE, extensions=[x509.InhibitAnyPolicy(0)])
    assert chain_from([root, fine, issuing], None, spki_of(issuing), NOW).root == root


def test_self_issued_cas_do_not_count_for_path_lengths() -> None:
    def limited(number: int) -> x509.BasicConstraints:
        return x509.BasicConstraints(ca=True, path_length=number)

    new = Ca("root")  # the root's next key, certified by the one before: "new with old" (RFC 4210, 4.4)
    root = ROOT.signs(ROOT, constraints=limited(1))
    link = ROOT.signs(new, constraints=limited(1))
    middle, issuing = new.signs(MIDDLE, constraints=limited(0)), None
    issuing = MIDDLE.signs(ISSUING)
    with pytest.raises(ConfigError, match="pathLenConstraint"):
        chain_from([link, middle, issuing], root, spki_of(issuing), NOW)
    direct = new.signs(ISSUING)
    assert chain_from([link, direct], root, spki_of(direct), NOW).chain == (direct, link)


def test_cross_certificates_are_told_apart_by_the_root_that_is_named() -> None:
    other = Ca("other root")
    roots = {"root": ROOT.signs(ROOT), "other": other.signs(other)}
    by_root, by_other = ROOT.signs(MIDDLE), other.signs(MIDDLE)
    issuing = MIDDLE.signs(ISSUING)
    bundle = [by_other, issuing, by_root]
    for name, link in (("root", by_root), ("other", by_other)):
        found = chain_from(bundle, roots[name], spki_of(issuing), NOW)
        assert (found.chain, found.root) == ((issuing, link), roots[name])
    with pytest.raises(ConfigError, match="several roots"):
        chain_from([*bundle, *roots.values()], None, spki_of(issuing), NOW)
    expired = other.signs(MIDDLE, end=NOW - YEAR / 12)
    assert chain_from([expired, issuing, by_root, *roots.values()], None, spki_of(issuing), NOW).chain == (
        issuing,
        by_root,
    )
