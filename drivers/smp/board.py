"""DeviceIdentity, TpmTransport, SelfTest and KeyPlace over the vendor group.

TPM commands pass through; what is in them is for drivers/tpm. Certificates and settings are in `store`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from drivers.smp import vendor
from drivers.smp.link import Link
from drivers.smp.messages import BoardError
from drivers.smp.transactions import Transactions
from hal.call import Call
from hal.errors import DeviceRefused, KeyConflict, ProtocolViolation
from hal.secret import Secret
from hal.types import BoardIdentity, DeviceKey, KeyProtection, KeyType, TestResult

# TPM 2.0 Part 1, 18: tag (16 bits), size of the whole (32), command or response code (32), big-endian.
_TPM_HEADER: Final = struct.Struct(">HII")
_LEAST_NONCE: Final = 16
_CURVES: Final = {"secp256r1": KeyType.P256, "secp384r1": KeyType.P384}
_RSA_SIZES: Final = {2048: KeyType.RSA2048, 3072: KeyType.RSA3072}


class SmpIdentity:
    """What the board says it is."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def identify(self, call: Call) -> BoardIdentity:
        said = self._link.ask(call, vendor.IdentifyRequest, vendor.IdentifyResponse, "identify")
        return BoardIdentity(board=said.board, serial=said.sn, macs=tuple(said.mac), firmware=said.fw)


class SmpTpm:
    """TPM commands through the board."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def transmit(self, call: Call, command: bytes) -> bytes:
        response = self._transactions.run(call, vendor.Command.TPM, command)
        if len(response) < _TPM_HEADER.size or _TPM_HEADER.unpack_from(response)[1] != len(response):
            problem = f"what the board gave as its TPM's response ({len(response)} octets) is none"
            raise ProtocolViolation(problem)
        return response


class SmpSelfTest:
    """The board's own tests."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def self_test(self, call: Call) -> Sequence[TestResult]:
        result = self._transactions.run(call, vendor.Command.SELF_TEST, b"")
        try:
            tests = vendor.unpack_tests(result)
        except ValueError as exc:
            raise ProtocolViolation(str(exc)) from None
        return tuple(TestResult(name, passed, detail) for name, passed, detail in tests)


class SmpKey:
    """A key that the board itself keeps, without a TPM. How it keeps it, its maker says in the driver's settings."""

    def __init__(self, transactions: Transactions, protection: KeyProtection) -> None:
        self._transactions, self._protection = transactions, protection

    @property
    def protection(self) -> KeyProtection:
        return self._protection

    def key(self, call: Call) -> DeviceKey | None:
        spki = self._transactions.run(call, vendor.Command.KEY, b"")
        return _device_key(spki) if spki else None

    def make_key(self, call: Call, key_type: KeyType, owner: Secret) -> DeviceKey:
        del owner  # there is no TPM hierarchy to authorise for
        try:
            spki = self._transactions.run(call, vendor.Command.MAKE_KEY, key_type.value.encode())
        except BoardError as exc:
            if exc.is_of(vendor.GROUP, vendor.Err.KEY_EXISTS):
                problem = "the board has a key already and doesn't replace it"
                raise KeyConflict(problem) from exc
            raise
        made = _device_key(spki)
        if made.key_type is not key_type:
            problem = f"the board made a key of type {made.key_type} where {key_type} was asked for"
            raise ProtocolViolation(problem)
        return made

    def csr(self, call: Call, common_name: str) -> bytes:
        name = common_name.encode()
        if not 0 < len(name) <= vendor.COMMON_NAME_LIMIT:
            problem = (
                f"a common name of {len(name)} octets can't be asked for; 1 to {vendor.COMMON_NAME_LIMIT} can"
            )
            raise DeviceRefused(problem)
        return self._transactions.run(call, vendor.Command.CSR, name)

    def prove(self, call: Call, nonce: bytes) -> bytes:
        if not _LEAST_NONCE <= len(nonce) <= vendor.NONCE_LIMIT:
            problem = (
                f"a nonce of {len(nonce)} octets can't be signed; {_LEAST_NONCE} to {vendor.NONCE_LIMIT} can"
            )
            raise DeviceRefused(problem)
        return self._transactions.run(call, vendor.Command.PROVE, nonce)


def _device_key(spki: bytes) -> DeviceKey:
    try:
        public = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        problem = "the key that the board shows is no SubjectPublicKeyInfo"
        raise ProtocolViolation(problem) from None
    key_type: KeyType | None = None
    if isinstance(public, ec.EllipticCurvePublicKey):
        key_type = _CURVES.get(public.curve.name)
    elif isinstance(public, rsa.RSAPublicKey):
        key_type = _RSA_SIZES.get(public.key_size)
    if key_type is None:
        problem = "the key that the board shows is of none of the known types"
        raise ProtocolViolation(problem)
    return DeviceKey(spki=spki, key_type=key_type)
