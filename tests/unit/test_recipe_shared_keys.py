"""A recipe that would give two units one key is refused, with the reason, and without telling the key."""

from __future__ import annotations

import base64
import secrets

import pytest

from station.shared_keys import why_shared
from station.steps import STEPS
from station.strict import Problems, convert
from station.toml_source import TomlSource

KEY = base64.b64encode(bytes(range(200, 232))).decode()


def problem(use: str, **options: object) -> str:
    """What the checker says of these options; empty when they are fine."""
    problems = Problems()
    convert(
        TomlSource("gw.toml", {"step": [options]}, {}), STEPS[use].options, problems, ("step", 0), options
    )
    return " ".join(str(found) for found in problems.found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dps/symmetric-key", "anything"),
        ("dps/key", "x"),
        ("mqtt/password", "hunter2"),
        ("wifi/psk", "factory"),
        ("api-token", "t"),
        ("connection-string", "HostName=h;DeviceId=d;SharedAccessKey=abc"),
        ("dps/blob", "HostName=h;DeviceId=d;SharedAccessKey=abc"),
        ("dps/sas", "s"),
        ("blob", "SharedAccessSignature sr=x&sig=y"),
        ("blob", "-----BEGIN PRIVATE KEY----- MIG..."),
        ("blob", KEY),
        ("blob", base64.b64encode(bytes(range(64))).decode()),
        ("blob", bytes(range(32)).hex()),
        ("blob", bytes(range(180, 196)).hex().upper()),
    ],
)
def test_a_secret_in_a_recipe_is_refused_with_the_reason_and_not_quoted(name: str, value: str) -> None:
    said = problem("configure", id_scope="0ne1", extra={name: value})
    assert name in said
    assert "every unit" in said
    assert "symmetric-key" in said
    assert len(value) < 8 or value not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("region", "europe"),
        ("mqtt/host", "broker.example.com"),
        ("update/public-key", KEY),
        ("update/key-sha256", bytes(range(32)).hex()),
        ("update/key-id", "7"),
        ("mqtt/token-url", "https://auth.example.com"),
        ("site", "0123456789012345"),
        ("note", "anotherverylongwordofsomany"),
        ("serial", "12345678"),
        ("gpio/led-pin", "4"),
        ("monkey", "see"),
        ("locale", "en_GB.UTF-8"),
    ],
)
def test_what_is_no_secret_passes(name: str, value: str) -> None:
    assert why_shared(name, value) is None
    assert problem("configure", id_scope="0ne1", extra={name: value}) == ""


def test_random_keys_are_seen_in_either_form() -> None:
    for length in (16, 32, 64):
        for _ in range(50):
            key = secrets.token_bytes(length)
            assert why_shared("blob", key.hex()) is not None
            assert why_shared("blob", base64.b64encode(key).decode()) is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": KEY}, "every unit"),
        ({"keys": "group", "group_key": "line", "registration_id": "gw-1"}, "constant ID"),
        ({"keys": "group"}, "group_key"),
        ({"group_key": "line"}, "group_key"),
        ({"keys": "individual", "group_key": "line"}, "group_key"),
        ({"keys": "shared"}, "individual"),
        ({"keys": "group", "group_key": KEY}, "label"),
        ({"transport": "clear"}, "signed"),
    ],
)
def test_a_key_for_all_units_is_no_option_of_the_step(options: dict[str, object], words: str) -> None:
    said = problem("symmetric-key", **options)
    assert words in said
    assert KEY not in said


def test_each_unit_its_own_passes() -> None:
    assert problem("symmetric-key") == ""
    assert problem("symmetric-key", keys="group", group_key="line-2026") == ""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"attestation": "symmetric-key"}, "symmetric_sealed"),
        ({"attestation": "symmetric-key", "group": "line"}, "symmetric_group"),
    ],
)
def test_an_enrollment_takes_only_what_its_step_gave(options: dict[str, object], wanted: str) -> None:
    made = STEPS["enroll"].options(**options)
    assert wanted in STEPS["enroll"].requires(made)
    symmetric = STEPS["symmetric-key"]
    for keys in ({}, {"keys": "group", "group_key": "line"}):
        given = symmetric.gives(symmetric.options(**keys))
        assert (wanted in given) == (("group" in options) == ("group_key" in keys))
