"""NV indexes: bounded reads, and writing one as a whole. What is in them must not be interpreted here."""

from __future__ import annotations

from typing import Final

from drivers.tpm import codec
from drivers.tpm.context import Tpm
from drivers.tpm.tss import ESAPI, ESYS_TR, TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC
from hal.errors import ProtocolViolation

LARGEST_PIECE: Final = 1024
"""Octets asked for at once: an answer of that size passes every transport; a TPM may allow less (NV_BUFFER_MAX)."""
SMALLEST_PIECE: Final = 16
LARGEST_INDEX: Final = 16384
"""Octets read from one index at most; EK certificates have some 1000 to 1500."""

CERTIFICATE_ATTRIBUTES: Final = TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA
"""Written with owner auth; read by anybody, since the index itself has an empty auth value (Part 2, 13.4)."""


def piece_length(tpm: Tpm) -> int:
    return min(LARGEST_PIECE, max(SMALLEST_PIECE, tpm.property(codec.Property.NV_BUFFER_MAX)))


def read(tpm: Tpm, index: int) -> bytes | None:
    """The content of `index`; None when it isn't defined, was never written or needs an auth value to be read."""
    if index not in tpm.handles(index, index):
        return None
    with tpm.persistent(index) as item:
        esapi = tpm.connected()
        described, _ = esapi.nv_read_public(item)
        area = described.nvPublic
        size, attributes = int(area.dataSize), int(area.attributes)
        if size > LARGEST_INDEX:
            raise ProtocolViolation(f"NV index 0x{index:08x} says it has {size} octets")
        if not attributes & TPMA_NV.WRITTEN:
            return None
        if not attributes & (TPMA_NV.AUTHREAD | TPMA_NV.OWNERREAD):
            return None
        reader = item if attributes & TPMA_NV.AUTHREAD else ESYS_TR.OWNER
        content = bytearray()
        step = piece_length(tpm)
        while len(content) < size:
            piece = bytes(
                esapi.nv_read(item, min(step, size - len(content)), len(content), auth_handle=reader)
            )
            if not piece:
                raise ProtocolViolation(f"NV index 0x{index:08x} ends after {len(content)} octets of {size}")
            content += piece
        return bytes(content)


def define(esapi: ESAPI, index: int, size: int, owner: ESYS_TR, session: ESYS_TR) -> None:
    """Makes `index` for `size` octets that everybody may read and the owner may write."""
    area = TPMS_NV_PUBLIC(
        nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=CERTIFICATE_ATTRIBUTES, dataSize=size
    )
    esapi.tr_close(
        esapi.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=area), auth_handle=owner, session1=session)
    )


def write(tpm: Tpm, index: int, content: bytes, owner: ESYS_TR, session: ESYS_TR) -> None:
    """`content` into the defined `index`, in pieces."""
    with tpm.persistent(index) as item:
        step = piece_length(tpm)
        for at in range(0, len(content), step):
            tpm.connected().nv_write(item, content[at : at + step], at, auth_handle=owner, session1=session)


def undefine(tpm: Tpm, index: int, owner: ESYS_TR, session: ESYS_TR) -> None:
    esapi = tpm.connected()
    # Not `persistent`: ESAPI closes its object together with the index.
    esapi.nv_undefine_space(esapi.tr_from_tpmpublic(index), auth_handle=owner, session1=session)
