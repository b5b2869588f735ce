"""What every EndorsementIdentity promises: `check(open_device)`, against a TPM that nobody owns and that has an EK.

The TPM is the caller's; its EK is persisted by the check. No test framework comes in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from hal.call import Call, Cancel
from hal.driver import Bindings
from hal.errors import Aborted, EkMismatch, HallmarkError
from hal.interfaces import EndorsementIdentity
from hal.types import EkOrigin, EndorsementKey

PATIENCE = 60.0
"""Seconds for one call: real chips derive an RSA key in some ten."""
EK_HANDLE = 0x81010001
NAME_HASHES = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}

Open = Callable[[], AbstractContextManager[Bindings]]


def name_of(public: bytes) -> bytes:
    """The Name of a TPM2B_PUBLIC (TPM 2.0 Part 1, 16): computed here, so that a driver can't vouch for itself."""
    assert int.from_bytes(public[:2], "big") == len(public) - 2, "TPM2B_PUBLIC comes with its size"
    digest = hashlib.new(NAME_HASHES[int.from_bytes(public[4:6], "big")], public[2:])
    return public[4:6] + digest.digest()


def raised(action: Callable[[], object]) -> HallmarkError:
    """The error that `action` raises, which has to be one of `hal.errors`."""
    try:
        action()
    except HallmarkError as error:
        return error
    raise AssertionError("this has to be refused")


def cancelled() -> Call:
    cancel = Cancel()
    cancel.set(Aborted("the check has set it"))
    return Call(cancel=cancel)


def chosen(identity: EndorsementIdentity) -> EndorsementKey:
    """What is at 0x81010001, else the EK of template L-1, persisted: what the other checks work with."""
    there = identity.persisted(Call.lasting(PATIENCE))
    if there is not None:
        return there
    report = identity.derive(Call.lasting(PATIENCE), "L-1")
    made = next(key for key in report.keys if key.template == "L-1")
    return identity.persist(Call.lasting(PATIENCE), made)


def check(open_device: Open) -> None:
    """All promises, one after the other."""
    with open_device() as device:
        identity = device.get(EndorsementIdentity)
        assert isinstance(raised(lambda: identity.endorsements(cancelled())), Aborted)
        description = identity.describe(Call.lasting(PATIENCE))
        assert description.manufacturer
        assert description.manufacturer.isprintable()
        report = identity.endorsements(Call.lasting(PATIENCE))
        assert not report.derived, "a report derives nothing by itself"
        report = identity.derive(Call.lasting(PATIENCE), "L-1")
        assert report == identity.derive(Call.lasting(PATIENCE), "L-1"), "derived once, and kept"
        assert report.derived == ("L-1",)
        for key in report.keys:
            assert key.name == name_of(key.public), "the Name is the hash of the public area"
            assert key.certificate not in report.stray_certificates
        ek = chosen(identity)
        assert ek.handle == EK_HANDLE
        assert identity.persisted(Call.lasting(PATIENCE)) == replace(
            ek, origin=EkOrigin.PERSISTENT, certificate=None
        )
    with open_device() as device:
        identity = device.get(EndorsementIdentity)
        assert identity.persist(Call.lasting(PATIENCE), ek) == ek, "persisting twice is once"
        assert chosen(identity).name == ek.name, "it outlives the visit"
        other = foreign(ek)
        assert isinstance(raised(lambda: identity.persist(Call.lasting(PATIENCE), other)), EkMismatch)


def foreign(ek: EndorsementKey) -> EndorsementKey:
    """An EK of the same kind that is no TPM's: the last octet of its key is another one."""
    public = ek.public[:-1] + bytes([ek.public[-1] ^ 0x80])
    return replace(ek, public=public, name=name_of(public))
