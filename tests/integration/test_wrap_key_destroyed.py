"""A work order's wrap key in a real token, through a real signer: destroyed, it and all that it wrapped are gone."""

from __future__ import annotations

import pytest

from hal.errors import HallmarkError, KeyMissing, TokenError
from hal.secret import Secret
from hal.types import TokenCondition
from station.messages import DestroyWrapKey, FromSigner, WrapSecret
from station.wire import Link, connect
from tests.fixtures_signer import PIN, BenchCa

LABELS = "print(sorted(o.label for o in token.open(user_pin={pin!r}).get_objects()))"


def labels(ca: BenchCa) -> str:
    return ca._token(LABELS.format(pin=PIN))


def test_a_destroyed_key_is_gone_from_the_token_and_what_it_wrapped_opens_never_again(
    signer: BenchCa,
) -> None:
    client = signer.client
    kept = client.wrap(b"unit 8", Secret(b"kept"), "order-WO-18.1")
    lost = client.wrap(b"unit 7", Secret(b"lost"), "order-WO-17.1")
    old = client.wrap(b"unit 6", Secret(b"old"))
    assert "resume-order-WO-17.1" in labels(signer)
    client.destroy_wrap_key("order-WO-17.1")
    client.destroy_wrap_key("order-WO-17.1")
    found = labels(signer)
    assert "resume-order-WO-17.1" not in found
    assert "resume-order-WO-18.1" in found
    with pytest.raises(KeyMissing):
        client.unwrap(b"unit 7", lost, "order-WO-17.1")
    client.wrap(b"unit 9", Secret(b"new"), "order-WO-17.1")
    with pytest.raises(TokenError):
        client.unwrap(b"unit 7", lost, "order-WO-17.1")
    assert client.unwrap(b"unit 8", kept, "order-WO-18.1") == Secret(b"kept")
    assert client.unwrap(b"unit 6", old) == Secret(b"old")
    assert client.check_token().condition == TokenCondition.READY


@pytest.mark.parametrize("key", ["../issuing-ca", "a b", "x" * 97, "-", "\n", "ü"])
def test_a_key_that_is_no_name_does_not_reach_the_token(shared_signer: BenchCa, key: str) -> None:
    for message in (DestroyWrapKey(key), WrapSecret(b"", b"plain", key)):
        link: Link[FromSigner] = connect(shared_signer.paths.signer_socket, FromSigner)
        with pytest.raises(HallmarkError):  # the frame can't be decoded: the connection ends
            link.send(message)
            link.receive()
        link.close()


@pytest.mark.parametrize("key", ["issuing-ca", "canary"])
def test_the_cas_and_the_canarys_keys_can_not_be_named(shared_signer: BenchCa, key: str) -> None:
    before = labels(shared_signer)
    shared_signer.client.destroy_wrap_key(key)
    assert labels(shared_signer) == before
    shared_signer.client.check_token()


def test_the_one_key_of_older_releases_is_never_destroyed(shared_signer: BenchCa) -> None:
    wrapped = shared_signer.client.wrap(b"", Secret(b"old"))
    with pytest.raises(HallmarkError, match="work order or day"):
        shared_signer.client.destroy_wrap_key("")
    assert shared_signer.client.unwrap(b"", wrapped) == Secret(b"old")
