"""`hal.interfaces.CertificateStore` in a TPM's NV: the leaf at 0x01C90000, its issuers from 0x01C90100 on.

What the certificates say must not come in: they are octets that anybody may read and the owner may replace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from drivers.tpm import certificates, nv, sessions
from drivers.tpm.codec import Property
from drivers.tpm.context import Tpm
from drivers.tpm.ownership import AUTH_SET
from hal.call import Call
from hal.errors import AlreadyOwned, CredentialError
from hal.types import Hierarchy

LEAF_INDEX: Final = 0x01C90000
"""TCG TPM 2.0 Keys for Device Identity and Attestation, 8 (NV indexes): the first IDevID certificate."""
ISSUER_INDEXES: Final = range(0x01C90100, 0x01C90110)
"""Its issuers, one an index: an index of most TPMs has 2048 octets at most, too few for a chain."""


class TpmCertificateStore:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    def install(self, call: Call, chain: Sequence[bytes]) -> None:
        """See `hal.interfaces`. Issuers first and the leaf last: whoever finds a leaf finds its chain.

        With an owner auth, Ownership has to have used it in this visit before.
        """
        if not 1 <= len(chain) <= 1 + len(ISSUER_INDEXES):
            raise CredentialError(f"a chain of {len(chain)} certificates doesn't fit into the TPM")
        with self._tpm.use(call, "installing the certificate in the TPM"):
            places = list(self._indexes())
            wanted = dict(zip(places, chain, strict=False))
            there = {index: nv.read(self._tpm, index) for index in self._defined()}
            if there == wanted:
                return
            auth = sessions.owner_auth(self._tpm)
            if not len(auth) and self._owner_is_set():
                raise AlreadyOwned(
                    "a certificate in the TPM needs its owner auth, which has not been used in this visit",
                    hint="The recipe's tpm-ownership step has to come before this one, or the certificate elsewhere.",
                )
            with sessions.owner(self._tpm, auth) as (owner, session):
                for index, content in there.items():
                    if content != wanted.get(index):
                        nv.undefine(self._tpm, index, owner, session)
                todo = [index for index in wanted if there.get(index) != wanted[index]]
                for done, index in enumerate(reversed(todo)):
                    call.progress(done, len(todo))
                    nv.define(self._tpm.connected(), index, len(wanted[index]), owner, session)
                    nv.write(self._tpm, index, wanted[index], owner, session)

    def installed(self, call: Call) -> Sequence[bytes]:
        with self._tpm.use(call, "reading the certificate in the TPM"):
            contents = [nv.read(self._tpm, index) for index in self._defined()]
        found = [certificates.stripped(content) if content else None for content in contents]
        return tuple(itertools.takewhile(lambda der: der is not None, found))  # type: ignore[arg-type]

    def _indexes(self) -> Iterator[int]:
        yield LEAF_INDEX
        yield from ISSUER_INDEXES

    def _defined(self) -> list[int]:
        """Our indexes that are there, from the leaf on; none without a leaf's."""
        there = self._tpm.handles(LEAF_INDEX, ISSUER_INDEXES.stop - 1)
        return [index for index in self._indexes() if index in there]

    def _owner_is_set(self) -> bool:
        return bool(self._tpm.property(Property.PERMANENT) & AUTH_SET[Hierarchy.OWNER])
