"""The vendor group of docs/vendor-group.md from the board's side: identity, and transactions for TPM, self-test, key.

The rules of the one transaction buffer are here; TPM, key store and self-test themselves are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

from drivers.emulated.board import storage
from drivers.emulated.board.delivery import Delivery
from drivers.emulated.board.server import Answer, Command, Refusal
from drivers.emulated.board.storage import KeyStore
from drivers.emulated.board.tpm import HEADER_LENGTH, MESSAGE_LIMIT, Tpm
from drivers.smp import vendor
from drivers.smp.vendor import Err
from hal.errors import DeviceGone

NONCE_LEAST: Final = 16
_ANSWER_OVERHEAD: Final = 48
"""Octets of an answer's header, keys and numbers at most, beside the piece of the result."""

Tests = Callable[[], list[tuple[str, bool, str]]]


@dataclass(slots=True)
class _Transaction:
    command: int
    id: int
    length: int
    argument: bytearray = field(default_factory=bytearray)
    result: bytes | Refusal | None = None


class Provisioning:
    def __init__(
        self,
        identity: Mapping[str, object],
        tpm: Tpm | None,
        keys: KeyStore,
        delivery: Delivery,
        tests: Tests,
        buffer_size: int,
    ) -> None:
        """`identity`: the keys of the identify answer, but for `v` and `tpm`."""
        self._identity = identity
        self._tpm = tpm
        self._keys = keys
        self._tests = tests
        self._piece = buffer_size - _ANSWER_OVERHEAD
        self._last: _Transaction | None = None
        self._actions: dict[vendor.Command, Callable[[bytes], bytes]] = {
            vendor.Command.TPM: self._transmit,
            vendor.Command.SELF_TEST: lambda _: vendor.pack_tests(self._tests()),
            vendor.Command.KEY: self._key,
            vendor.Command.MAKE_KEY: self._make_key,
            vendor.Command.CSR: self._csr,
            vendor.Command.PROVE: self._prove,
            vendor.Command.TRANSPORT_KEY: delivery.transport_key,
            vendor.Command.INSTALL_KEY: delivery.install,
            vendor.Command.PROVE_SECRET: delivery.prove,
        }

    def commands(self) -> list[Command]:
        return [
            Command(vendor.IdentifyRequest, self._identify),
            *(Command(request, self._put) for request in vendor.PUT_REQUEST.values()),
            *(Command(request, self._get) for request in vendor.GET_REQUEST.values()),
        ]

    def _identify(self, request: object) -> Answer:
        del request
        return {"v": vendor.VERSION, **self._identity, "tpm": self._tpm is not None}

    # --- the transaction buffer ---

    def _put(self, request: vendor.PutRequest) -> Answer:
        command = int(request._COMMAND_ID)
        last = self._last
        if last is None or (last.id, last.command) != (request.id, command):
            if request.off:
                _refuse(Err.UNKNOWN_TRANSACTION)
            last = self._last = _Transaction(command, request.id, request.len)
        if last.result is None:
            if request.len != last.length or request.off + len(request.d) > last.length:
                _refuse(Err.BAD_ARGUMENT)
            if request.off == len(last.argument):
                last.argument += request.d
            if len(last.argument) < last.length:
                return {"id": last.id, "off": len(last.argument)}
            last.result = self._execute(command, bytes(last.argument))
        return self._answer(last, 0)

    def _get(self, request: vendor.GetRequest) -> Answer:
        last = self._last
        known = last is not None and (last.id, last.command) == (request.id, int(request._COMMAND_ID))
        if last is None or not known or last.result is None:
            _refuse(Err.UNKNOWN_TRANSACTION)
        return self._answer(last, request.off)

    def _answer(self, transaction: _Transaction, offset: int) -> Answer:
        result = transaction.result
        if not isinstance(result, bytes):
            # A failure is the transaction's result too: asking again gives the same one.
            raise result or Refusal(Err.UNKNOWN, vendor.GROUP)
        if offset > len(result):
            _refuse(Err.BAD_ARGUMENT)
        piece = result[offset : offset + self._piece]
        return {"id": transaction.id, "off": offset, "len": len(result), "d": piece}

    def _execute(self, command: int, argument: bytes) -> bytes | Refusal:
        try:
            result = self._actions[vendor.Command(command)](argument)
        except Refusal as refusal:
            return refusal
        return result if len(result) <= vendor.PAYLOAD_LIMIT else Refusal(Err.TOO_LONG, vendor.GROUP)

    # --- what transactions do ---

    def _transmit(self, command: bytes) -> bytes:
        if self._tpm is None:
            _refuse(Err.NO_TPM)
        if not HEADER_LENGTH <= len(command) <= MESSAGE_LIMIT:
            _refuse(Err.BAD_ARGUMENT)
        if int.from_bytes(command[2:6], "big") != len(command):
            # The TPM would wait for the rest, or take the surplus for the next command.
            _refuse(Err.BAD_ARGUMENT)
        try:
            return self._tpm.transmit(command)
        except DeviceGone:
            _refuse(Err.NO_TPM)

    def _key(self, argument: bytes) -> bytes:
        del argument
        key = self._keys.key()
        return storage.spki(key) if key else b""

    def _make_key(self, argument: bytes) -> bytes:
        if self._keys.key():
            _refuse(Err.KEY_EXISTS)
        key = self._keys.make(argument.decode("ascii", "replace"))
        return storage.spki(key) if key else _refuse(Err.BAD_ARGUMENT)

    def _csr(self, argument: bytes) -> bytes:
        key = self._keys.key() or _refuse(Err.NO_KEY)
        try:
            name = argument.decode("utf-8")
        except UnicodeDecodeError:
            _refuse(Err.BAD_ARGUMENT)
        if not 0 < len(argument) <= vendor.COMMON_NAME_LIMIT:
            _refuse(Err.BAD_ARGUMENT)
        return storage.csr(key, name)

    def _prove(self, argument: bytes) -> bytes:
        key = self._keys.key() or _refuse(Err.NO_KEY)
        if not NONCE_LEAST <= len(argument) <= vendor.NONCE_LIMIT:
            _refuse(Err.BAD_ARGUMENT)
        return storage.sign(key, argument)


def _refuse(rc: Err) -> NoReturn:
    raise Refusal(rc, vendor.GROUP)
