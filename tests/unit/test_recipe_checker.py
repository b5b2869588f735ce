"""Every mistake in a recipe that can be seen without a board is refused with file, line, key and what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hal.errors import HallmarkError, RecipeError
from hal.types import Hierarchy
from station import cli
from station.config import load_configuration
from station.messages import StepPlan
from station.paths import Paths
from station.recipe import Recipe, rebuild_steps
from station.recipe_file import MAX_STEPS, load_recipe

CONFIG = Path(__file__).resolve().parents[2] / "config/recipes"
HEAD = 'sku = "gw"\ndrivers = { link = "smp-serial", tpm = "tcti-tunnel" }\n'
FLASH = '[[step]]\nuse = "flash"\nimage = "gw.bin"\n'
IDENTITY = '[[step]]\nuse = "tpm-identity"\n'
OWNERSHIP = '[[step]]\nuse = "tpm-ownership"\n'
CERTIFICATE = '[[step]]\nuse = "certificate"\nprofile = "p"\n'
ENROLL = '[[step]]\nuse = "enroll"\nattestation = "tpm"\n'
STATION = """\
[station]
name = "s"
mode = "{mode}"
drivers = ["serial", "smp-serial", "tcti-tunnel", "swtpm", "pkcs11"]
[signer]
settings = {{ module = "/m.so", token = "t" }}
"""


def load(tmp_path: Path, text: str, mode: str = "bench") -> Recipe:
    paths = Paths(tmp_path)
    folder = paths.configuration.parent / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    drivers = STATION.format(mode=mode)
    paths.configuration.write_text(drivers if mode == "bench" else drivers.replace('"swtpm", ', ""))
    (folder / "r.toml").write_text(text)
    return load_recipe(load_configuration(paths, signed=False), "r.toml")


def refusal(tmp_path: Path, text: str, mode: str = "bench") -> list[tuple[int | None, str | None, str]]:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, mode)
    found = (caught.value, *caught.value.others)
    assert {Path(error.file or "").name for error in found} == {"r.toml"}
    return [(error.line, error.key, error.problem) for error in found]


def test_a_recipe_that_holds_together_is_loaded_with_its_drivers_in_order(tmp_path: Path) -> None:
    found = load(tmp_path, HEAD + FLASH + IDENTITY + OWNERSHIP + CERTIFICATE + ENROLL)
    assert [plan.role for plan in found.drivers] == ["channel", "link", "tpm"]
    assert [plan.driver for plan in found.drivers] == ["serial", "smp-serial", "tcti-tunnel"]
    assert found.images() == ["gw.bin"]
    assert found.profiles() == ["p"]
    assert found.issues()
    assert found.recipe_pass == "final"


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIG.glob("*.toml")))
def test_the_recipes_that_ship_hold_together(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, (CONFIG / name).read_text()).steps


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        (HEAD, None, None, "'step' is missing; expected an array of tables"),
        (HEAD + "step = []\n", 3, "step", "expected 1 to"),
        (HEAD + "colour = 1\n" + IDENTITY, 3, "colour", "unknown key"),
        (HEAD + IDENTITY + '[[step]]\nuse = "flesh"\n', 6, "step[1].use", "no step 'flesh'"),
        (HEAD + IDENTITY + "[[step]]\nimage = 'x'\n", 5, "step[1].use", "no step None"),
        (HEAD + IDENTITY + "[[step]]\nuse = 3\n", 6, "step[1].use", "no step 3"),
        (HEAD + IDENTITY + '[[step]]\nuse = "flash"\n', 5, "step[1]", "'image' is missing"),
        (HEAD + IDENTITY + FLASH + "imege = 1\n", 8, "step[1].imege", "unknown key"),
        (HEAD + IDENTITY + FLASH + "within = 0.5\n", 8, "step[1].within", "1 to 600"),
        (HEAD + IDENTITY + FLASH + "within = true\n", 8, "step[1].within", "1 to 600"),
        (HEAD + IDENTITY + "ek_certificate = 'maybe'\n", 5, "step[0].ek_certificate", "'required', 'if-present'"),
        (HEAD + IDENTITY + OWNERSHIP + "auths = ['platform']\n", 7, "step[1].auths", "'owner', 'endorsement' and"),
        (HEAD + IDENTITY + OWNERSHIP + "attestation = 'tpm'\n", 7, "step[1].attestation", "enroll step"),
        (HEAD + IDENTITY + CERTIFICATE + "key = 'p521'\n", 8, "step[1].key", "'p256', 'p384'"),
        (HEAD + IDENTITY + CERTIFICATE + "place = 'hsm'\n", 5, "step[1]", "KeyPlace by role 'hsm'"),
        (HEAD + IDENTITY + CERTIFICATE + "install = 'tpm2'\n", 5, "step[1]", "by role 'tpm2'"),
        (HEAD + CERTIFICATE, 3, "step[0]", "from an earlier step"),
        (HEAD + OWNERSHIP + IDENTITY, 3, "step[0]", "from an earlier step"),
        (HEAD + IDENTITY + ENROLL + FLASH, 5, "step[1]", "enroll has to be the last step"),
        (HEAD + IDENTITY + IDENTITY, 5, "step[1]", "stands twice"),
        (HEAD + FLASH, 3, "step", "which unit this is"),
        (HEAD + IDENTITY + ENROLL + "group = 'g'\n", 5, "step[1]", "`group` names the enrollment group"),
        ('sku = "gw"\ndrivers = { link = "smp" }\n' + IDENTITY, 2, "drivers.link", "station.drivers"),
        ('sku = "gw"\ndrivers = { tpm = "tcti-tunnel" }\n' + IDENTITY, 2, "drivers", "TpmTransport"),
        ('sku = "gw"\n' + IDENTITY, 2, "step[0]", "offered by: none"),
        ('sku = "g w"\n' + IDENTITY, 1, "sku", "a name of letters"),
        (HEAD + "[settings.lonk]\ntries = 1\n" + IDENTITY, 3, "settings.lonk", "no driver has this role"),
        (HEAD + "[settings.link]\ntrees = 1\n" + IDENTITY, 4, "settings.link.trees", "unknown key"),
        (HEAD + "[settings.channel]\nbaud = 'fast'\n" + IDENTITY, 4, "settings.channel.baud", "a whole number"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_where_it_stands(
    tmp_path: Path, text: str, line: int | None, key: str | None, said: str
) -> None:
    found = refusal(tmp_path, text)
    assert any(
        found_key == key and said in problem and found_line == line
        for found_line, found_key, problem in found
    ), found


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = HEAD + '[[step]]\nuse = "flash"\n[[step]]\nuse = "tpm-identity"\nek = 1\n[[step]]\nuse = "x"\n'
    assert [key for _line, key, _said in refusal(tmp_path, text)] == ["step[0]", "step[1].ek", "step[2].use"]


def test_more_steps_than_a_recipe_can_have_are_refused(tmp_path: Path) -> None:
    assert "expected 1 to" in refusal(tmp_path, HEAD + IDENTITY * (MAX_STEPS + 1))[0][2]


def test_what_is_no_toml_or_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, HEAD + "[[step]\n")[0][0] == 3
    load(tmp_path, HEAD + IDENTITY)
    configuration = load_configuration(Paths(tmp_path), signed=False)
    with pytest.raises(RecipeError, match=r"missing\.toml"):
        load_recipe(configuration, "missing.toml")


def test_a_driver_for_the_bench_is_refused_in_production(tmp_path: Path) -> None:
    text = 'sku = "gw"\ndrivers = { tpm = "swtpm" }\n' + IDENTITY
    found = refusal(tmp_path, text, "production")
    assert found[0][1] == "drivers.tpm"


def test_which_auths_are_set_follows_from_the_enroll_step(tmp_path: Path) -> None:
    def wanted(attestation: str) -> frozenset[Hierarchy]:
        enroll = ENROLL.replace('"tpm"', f'"{attestation}"')
        steps = load(tmp_path, HEAD + IDENTITY + OWNERSHIP + CERTIFICATE + enroll).steps
        options = next(item.options for item in steps if item.step.use == "tpm-ownership")
        return frozenset(options.wanted)

    assert wanted("tpm") == {Hierarchy.LOCKOUT}
    assert wanted("x509") == {Hierarchy.OWNER, Hierarchy.LOCKOUT}


def test_a_worker_gets_the_same_steps_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    found = load(tmp_path, HEAD + FLASH + IDENTITY + OWNERSHIP + CERTIFICATE + ENROLL)
    assert rebuild_steps(found.step_plans()) == found.steps
    for plan in (StepPlan("flesh", {}), StepPlan("flash", {}), StepPlan("flash", {"image": 3})):
        with pytest.raises(HallmarkError, match="does not know"):
            rebuild_steps([plan])


# --- warnings ---------------------------------------------------------------------------------------------------

X509 = CERTIFICATE + ENROLL.replace("tpm", "x509")


@pytest.mark.parametrize(
    ("auths", "enroll", "wanted"),
    [
        ("", ENROLL, []),
        ("", X509, []),
        ("auths = ['owner', 'lockout']\n", ENROLL, ["EvictControl"]),
        ("auths = ['owner', 'lockout']\nfield_client_knows = ['owner']\n", ENROLL, []),
        ("auths = ['owner', 'endorsement', 'lockout']\n", ENROLL, ["EvictControl", "PolicySecret"]),
        ("auths = ['owner', 'endorsement', 'lockout']\n", X509, []),
        ("auths = []\n", ENROLL, ["clear the TPM"]),
        ("platform = 'waived'\nplatform_reason = 'firmware 2'\n", ENROLL, ["platform auth"]),
    ],
)
def test_what_would_break_a_field_client_is_warned_of_where_it_stands(
    tmp_path: Path, auths: str, enroll: str, wanted: list[str]
) -> None:
    found = load(tmp_path, HEAD + IDENTITY + OWNERSHIP + auths + enroll)
    assert len(found.warnings) == len(wanted)
    for warning, words in zip(found.warnings, wanted, strict=True):
        assert words in warning.message
        assert str(warning).startswith(f"{tmp_path / 'etc/hallmark/recipes/r.toml'}:7: step[1].")
        assert "warning" in str(warning)


def test_a_warning_is_printed_and_told_to_scripts_and_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, HEAD + IDENTITY + OWNERSHIP + "auths = ['owner', 'lockout']\n" + ENROLL)
    assert cli.main(["--root", str(tmp_path), "recipe", "check", "r.toml", "--json"]) == 0
    said = capsys.readouterr()
    (warning,) = json.loads(said.out)[0]["warnings"]
    assert (warning["line"], warning["key"]) == (7, "step[1].auths")
    assert "r.toml:7: step[1].auths: warning: DPS clients" in said.err


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("platform = 'waived'\n", "platform_reason"),
        ("platform_reason = 'because'\n", "platform_reason"),
        ("escrow_copies = 2\n", "escrow media"),
    ],
)
def test_a_waiver_needs_a_reason_and_copies_need_media(tmp_path: Path, text: str, key: str) -> None:
    assert key in str(refusal(tmp_path, HEAD + IDENTITY + OWNERSHIP + text + ENROLL))


# --- what has to vouch for an EK ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "trust", "untrusted"),
    [
        ("", "certificate", False),
        ('ek_certificate = "required"', "certificate", False),
        ('ek_certificate = "if-present"', "if-present", True),
        ('ek_certificate = "none"', "none", True),
        ('ek_trust = "certificate-or-list"', "certificate-or-list", False),
        ('ek_trust = "list"', "list", False),
        ('ek_trust = "none"', "none", True),
    ],
)
def test_either_spelling_says_what_has_to_vouch_and_nothing_needs_consent_in_each_step(
    tmp_path: Path, given: str, trust: str, untrusted: bool
) -> None:
    identity = IDENTITY + given + "\n"
    policy = load(tmp_path, HEAD + identity).ek_policy()
    assert policy is not None
    assert (policy.trust, policy.crl) == (trust, "warn")
    whole = HEAD + identity + OWNERSHIP + CERTIFICATE + ENROLL
    if not untrusted:
        load(tmp_path, whole)
        return
    found = refusal(tmp_path, whole)
    assert [key for _line, key, _said in found] == ["step[1].untrusted_ek", "step[2].untrusted_ek"]
    assert all('expected untrusted_ek = "accept" here' in said for _line, _key, said in found)
    assert [line for line, _key, _said in found] == [
        number for number, text in enumerate(whole.splitlines(), 1) if text == "[[step]]"
    ][1:3]
    accept = 'untrusted_ek = "accept"\n'
    load(tmp_path, HEAD + identity + OWNERSHIP + accept + CERTIFICATE + accept + ENROLL)


def test_both_spellings_at_once_are_refused(tmp_path: Path) -> None:
    both = IDENTITY + 'ek_trust = "list"\nek_certificate = "none"\n'
    ((line, _key, said),) = refusal(tmp_path, HEAD + both)
    assert line == 3
    assert 'ek_certificate = "none" is ek_trust = "none"' in said


# --- passes that come one after the other ------------------------------------------------------------------------

INCOMING = 'pass = "incoming"\n' + HEAD + IDENTITY
KNOWN = IDENTITY + "known = true\n"


def with_incoming(tmp_path: Path, incoming: str, final: str) -> Recipe:
    load(tmp_path, HEAD + IDENTITY)
    (tmp_path / "etc/hallmark/recipes/in.toml").write_text(incoming)
    return load(tmp_path, final)


def test_what_an_earlier_pass_gave_needs_no_step_of_its_own(tmp_path: Path) -> None:
    final = 'after = "incoming"\n' + HEAD + KNOWN + CERTIFICATE + ENROLL
    found = with_incoming(tmp_path, INCOMING + OWNERSHIP, final)
    assert found.after == "incoming"
    assert found.inherits == ("tpm-identity", "tpm-ownership")
    assert found.knows_ek()
    assert found.ek_policy() is None


@pytest.mark.parametrize(
    ("incoming", "final", "line", "said"),
    [
        (INCOMING, 'after = "intake"\n' + HEAD + KNOWN, 1, "is in no recipe; expected an earlier pass"),
        (INCOMING, 'after = "final"\n' + HEAD + KNOWN, 1, "comes after this one"),
        ('after = "final"\n' + INCOMING, 'after = "incoming"\n' + HEAD + KNOWN, 1, "comes after this one"),
        (INCOMING, 'after = "incoming"\n' + HEAD + CERTIFICATE, 4, "needs ak_public, ek_name, ek_public"),
        (INCOMING, HEAD + KNOWN, 5, "no earlier pass has judged the EK"),
        (INCOMING, HEAD + CERTIFICATE, 3, "from an earlier step, or from an earlier pass that `after` names"),
        (
            INCOMING,
            'after = "incoming"\n' + HEAD + KNOWN + 'ek_trust = "none"\n',
            4,
            "judged in an earlier pass",
        ),
        (
            INCOMING + 'ek_trust = "none"\n',
            'after = "incoming"\n' + HEAD + KNOWN + OWNERSHIP,
            7,
            'untrusted_ek = "accept"',
        ),
    ],
)
def test_a_pass_that_does_not_fit_the_one_before_it_is_refused_with_its_line(
    tmp_path: Path, incoming: str, final: str, line: int, said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        with_incoming(tmp_path, incoming, final)
    found = [caught.value, *caught.value.others]
    assert any(said in error.problem for error in found), [error.problem for error in found]
    assert line in {error.line for error in found if said in error.problem}, [str(error) for error in found]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('install = ["link", "link"]\n', "names a role twice"),
        ("install = []\n", "array of 1 to 4 roles"),
        ('install = ["link", "cloud"]\n', "CertificateStore by role 'cloud'"),
        ('template = "tcg-idevid"\nkey = "rsa2048"\n', "P-256"),
        ('iak = true\nplace = "link"\n', "made in a TPM"),
        ('template = "idevid"\n', "'hallmark' or 'tcg-idevid'"),
    ],
)
def test_options_of_the_certificate_step_that_do_not_fit_are_refused(
    tmp_path: Path, options: str, said: str
) -> None:
    found = refusal(tmp_path, HEAD + IDENTITY + OWNERSHIP + CERTIFICATE + options)
    assert any(said in problem for _line, _key, problem in found), found


def test_a_certificate_may_go_to_several_places(tmp_path: Path) -> None:
    text = HEAD + IDENTITY + OWNERSHIP + CERTIFICATE + 'install = ["link", "tpm"]\niak = true\n'
    options = load(tmp_path, text).steps[-1].options
    assert options.stores == ("link", "tpm")
    assert [action.name for action in load(tmp_path, text).steps[-1].actions][:3] == [
        "key",
        "iak",
        "residency",
    ]
