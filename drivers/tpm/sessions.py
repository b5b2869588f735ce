"""How auth values are used: in HMAC sessions salted to the EK that the caller has verified, encrypted both ways.

A password session would show a new auth value in clear on the wire. Nothing else of the TPM must come in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from drivers.tpm import nv, public, templates
from drivers.tpm.context import HIERARCHIES, Tpm
from drivers.tpm.tss import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_OBJECT, TPMA_SESSION, TPML_DIGEST, TPMT_SYM_DEF
from hal.errors import EkMismatch, TpmError
from hal.secret import EMPTY, Secret
from hal.types import EndorsementKey, Hierarchy

SYMMETRIC: Final = "aes128cfb"
"""Parameter encryption: the algorithm that every TPM has (PC Client Platform TPM Profile, 4.6)."""
_ATTRIBUTES: Final = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT


@contextlib.contextmanager
def endorsement_key(tpm: Tpm, ek: EndorsementKey) -> Iterator[ESYS_TR]:
    """ESAPI's object for `ek`, persisted or derived anew. EkMismatch when the TPM has another one there."""
    with contextlib.ExitStack() as stack:
        if ek.handle is None:
            item, _ = stack.enter_context(derived_ek(tpm, ek.template))
        elif tpm.is_persistent(ek.handle):
            item = stack.enter_context(tpm.persistent(ek.handle))
        else:
            raise EkMismatch(f"there is no key at 0x{ek.handle:08x}, where the EK was")
        # ESAPI encrypts salts to the public area that it keeps with the object, and its serialization ends with that
        # area: so this compares what will be used with what the caller has verified, whatever the TPM said.
        if not bytes(tpm.connected().tr_serialize(item)).endswith(ek.public):
            raise EkMismatch("the TPM has another EK than the one that was verified")
        yield item


@contextlib.contextmanager
def derived_ek(tpm: Tpm, template: str) -> Iterator[tuple[ESYS_TR, bytes]]:
    """The EK of that template as a transient object, and its TPM2B_PUBLIC."""
    area = templates.ek(template, lambda index: nv.read(tpm, index))
    with endorsement_primary(tpm, area, f"EK {template}") as made:
        yield made


@contextlib.contextmanager
def salted(tpm: Tpm, ek: EndorsementKey) -> Iterator[ESYS_TR]:
    """An HMAC session salted to `ek`: the only kind that carries or uses an auth value."""
    esapi = tpm.connected()
    with endorsement_key(tpm, ek) as key:
        session = esapi.start_auth_session(
            key, ESYS_TR.NONE, TPM2_SE.HMAC, TPMT_SYM_DEF.parse(SYMMETRIC), TPM2_ALG.SHA256
        )
    with tpm.flushing(session):
        esapi.trsess_set_attributes(session, _ATTRIBUTES)
        yield session


@contextlib.contextmanager
def policy(tpm: Tpm, kind: TPM2_SE) -> Iterator[ESYS_TR]:
    """A policy session, or with TPM2_SE.TRIAL one that can authorise nothing."""
    session = tpm.connected().start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, kind, TPMT_SYM_DEF.parse(SYMMETRIC), TPM2_ALG.SHA256
    )
    with tpm.flushing(session):
        yield session


@contextlib.contextmanager
def using_ek(tpm: Tpm, ek: EndorsementKey) -> Iterator[ESYS_TR]:
    """What authorises using the EK: its empty auth where its template allows that, else PolicySecret(ENDORSEMENT)."""
    if public.attributes(ek.public) & TPMA_OBJECT.USERWITHAUTH:
        yield ESYS_TR.PASSWORD
        return
    with policy(tpm, TPM2_SE.POLICY) as session:
        _endorse(tpm, session)
        yield session


@contextlib.contextmanager
def administering(tpm: Tpm, area: bytes, command: int) -> Iterator[ESYS_TR]:
    """What authorises `command` on an object in the ADMIN role: its auth, or the TCG's IDevID and IAK policy.

    Those keys have adminWithPolicy set; their policy has a branch for Certify and one for ActivateCredential, both
    behind the endorsement auth.
    """
    if not public.attributes(area) & TPMA_OBJECT.ADMINWITHPOLICY:
        yield ESYS_TR.PASSWORD
        return
    branches = (
        templates.idevid_branches() if area[12:44] == templates.idevid_policy() else templates.iak_branches()
    )
    with policy(tpm, TPM2_SE.POLICY) as session:
        _endorse(tpm, session)
        tpm.connected().policy_command_code(session, command)
        tpm.connected().policy_or(session, TPML_DIGEST(branches))
        yield session


def _endorse(tpm: Tpm, session: ESYS_TR) -> None:
    """PolicySecret(ENDORSEMENT) in the policy session `session`."""
    with endorsement(tpm) as (item, authorising):
        tpm.connected().policy_secret(item, session, expiration=0, session1=authorising)


@contextlib.contextmanager
def authorised(tpm: Tpm, hierarchy: Hierarchy, auth: Secret) -> Iterator[ESYS_TR]:
    """The hierarchy with `auth` in ESAPI's keeping, and without it afterwards."""
    esapi, item = tpm.connected(), HIERARCHIES[hierarchy]
    esapi.tr_set_auth(item, auth.reveal())
    try:
        yield item
    finally:
        if tpm.is_connected(esapi):
            esapi.tr_set_auth(item, b"")


@contextlib.contextmanager
def owner(tpm: Tpm, auth: Secret) -> Iterator[tuple[ESYS_TR, ESYS_TR]]:
    """The owner hierarchy and a session for it: salted when there is an auth value, else a plain empty password.

    For callers whose interface gives no EK: the session is salted to the EK that ownership was used with in this visit.
    """
    if not len(auth):
        yield ESYS_TR.OWNER, ESYS_TR.PASSWORD
        return
    if tpm.vouched is None:
        raise TpmError(
            "the owner auth can't be sent: no EK has been used for ownership in this visit",
            hint="The recipe's tpm-ownership step has to come before this one.",
        )
    with salted(tpm, tpm.vouched[0]) as session, authorised(tpm, Hierarchy.OWNER, auth) as item:
        yield item, session


@contextlib.contextmanager
def endorsement(tpm: Tpm) -> Iterator[tuple[ESYS_TR, ESYS_TR]]:
    """The endorsement hierarchy and a session for it: as `owner`, with the auth that Ownership has set or proven."""
    if tpm.endorsed is None:
        yield ESYS_TR.ENDORSEMENT, ESYS_TR.PASSWORD
        return
    ek, auth = tpm.endorsed
    if ek.handle is None:
        # To derive it anew for the salt would take the very auth that is to be salted.
        raise TpmError("the endorsement auth can't be sent: the EK is not persisted, to salt a session to")
    with salted(tpm, ek) as session, authorised(tpm, Hierarchy.ENDORSEMENT, auth) as item:
        yield item, session


@contextlib.contextmanager
def endorsement_primary(tpm: Tpm, template: object, keep: str) -> Iterator[tuple[ESYS_TR, bytes]]:
    """A transient primary key of that hierarchy and its TPM2B_PUBLIC; its session has ended by then.

    Under the name `keep` its context is kept for the visit when making it was slow.
    """

    @contextlib.contextmanager
    def make() -> Iterator[tuple[ESYS_TR, bytes]]:
        with contextlib.ExitStack() as stack:
            with endorsement(tpm) as (_, session):
                made = stack.enter_context(tpm.primary(Hierarchy.ENDORSEMENT, template, session))
            yield made

    with tpm.kept(keep, make) as made:
        yield made


def owner_auth(tpm: Tpm) -> Secret:
    """The owner auth that has held in this visit (set or proven through Ownership), else the empty one."""
    return tpm.vouched[1] if tpm.vouched else EMPTY
