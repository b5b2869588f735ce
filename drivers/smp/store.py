"""DeviceSettings over SMP's settings group, and CertificateStore over its file system group.

The chain is one PEM file, leaf first. What names and certificates mean doesn't come in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from smp import file_management as fs
from smp import settings_management as sm
from smp.header import GroupId

from drivers.smp.link import Link
from drivers.smp.messages import BoardError
from hal.call import Call
from hal.errors import ConfigError, DeviceRefused, ProtocolViolation, VerifyMismatch, quote

FILE_LIMIT: Final = 16384
"""Octets of a certificate file; a chain of four RSA-4096 certificates takes about 8000."""
_KEY: Final = re.compile(r"[a-z0-9/_-]{1,64}")
_VALUE_LIMIT: Final = 256
_CHAIN_LIMIT: Final = 8
_NO_SETTING: Final = frozenset({sm.SETTINGS_MGMT_ERR.KEY_NOT_FOUND, sm.SETTINGS_MGMT_ERR.ROOT_KEY_NOT_FOUND})
_NO_FILE: Final = frozenset({fs.FS_MGMT_ERR.FILE_NOT_FOUND, fs.FS_MGMT_ERR.FILE_EMPTY})
_UPLOADS: Final = 3
_BIG_OFFSET: Final = 0xFFFF_FFFF


class SmpSettings:
    """The board's settings subsystem."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def write_settings(self, call: Call, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            name, data = self._name(key), value.encode()
            if len(value) > _VALUE_LIMIT:
                problem = (
                    f"the value of {quote(key)} has {len(value)} characters; at most {_VALUE_LIMIT} are kept"
                )
                raise ConfigError(problem)
            if len(data) > self._link.room(call, sm.WriteSettingRequest, "val", name=name):
                problem = f"the value of {quote(key)} is longer than the board's buffer"
                raise DeviceRefused(problem)
            self._link.ask(
                call, sm.WriteSettingRequest, sm.WriteSettingResponse, f"setting {key}", name=name, val=data
            )
        self._link.ask(call, sm.SaveSettingsRequest, sm.SaveSettingsResponse, "to save the settings")

    def read_settings(self, call: Call, keys: Sequence[str]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for key in keys:
            try:
                answer = self._link.ask(
                    call,
                    sm.ReadSettingRequest,
                    sm.ReadSettingResponse,
                    f"setting {key}",
                    name=self._name(key),
                )
            except BoardError as exc:
                if exc.group == GroupId.SETTINGS_MANAGEMENT and exc.rc in _NO_SETTING:
                    continue
                raise
            found[key] = _text(key, answer.val)
        return found

    def _name(self, key: str) -> str:
        if _KEY.fullmatch(key) is None:
            problem = f"{quote(key)} is no name of a setting: [a-z0-9/_-], 1 to 64 characters"
            raise ConfigError(problem)
        return self._link.settings.settings_prefix + key


class SmpCertificates:
    """The certificate file on the board."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._path = link.settings.certificate_path

    def install(self, call: Call, chain: Sequence[bytes]) -> None:
        pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in chain)
        if not pem or len(pem) > FILE_LIMIT or len(chain) > _CHAIN_LIMIT:
            problem = f"{len(chain)} certificates ({len(pem)} octets as PEM) can't be installed"
            raise DeviceRefused(problem)
        for attempt in range(1, _UPLOADS + 1):
            try:
                self._upload(call, pem)
                break
            except BoardError as exc:
                # A piece whose answer was lost is there already, so its repetition is at a wrong offset.
                known = exc.is_of(GroupId.FILE_MANAGEMENT, fs.FS_MGMT_ERR.FILE_OFFSET_NOT_VALID)
                if not known or attempt == _UPLOADS:
                    raise
        if self._download(call) != pem:
            problem = "the certificate file that the board gives back is not the one it was given"
            raise VerifyMismatch(problem)

    def installed(self, call: Call) -> Sequence[bytes]:
        data = self._download(call)
        if not data.strip():
            return ()
        try:
            found = x509.load_pem_x509_certificates(data)
        except ValueError:
            problem = f"the board's {quote(self._path)} is no PEM certificate file"
            raise ProtocolViolation(problem) from None
        if len(found) > _CHAIN_LIMIT:
            problem = f"the board's {quote(self._path)} holds {len(found)} certificates"
            raise ProtocolViolation(problem)
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in found)

    def _upload(self, call: Call, data: bytes) -> None:
        room = self._link.room(
            call, fs.FileUploadRequest, "data", off=_BIG_OFFSET, name=self._path, len=FILE_LIMIT
        )
        offset = 0
        while offset < len(data):
            piece = data[offset : offset + room]
            length = {"len": len(data)} if offset == 0 else {}
            answer = self._link.ask(
                call,
                fs.FileUploadRequest,
                fs.FileUploadResponse,
                "certificate upload",
                off=offset,
                data=piece,
                name=self._path,
                **length,
            )
            if not offset < answer.off <= offset + len(piece):
                problem = "the board's answer to certificate upload has an offset outside what was sent"
                raise ProtocolViolation(problem)
            offset = answer.off

    def _download(self, call: Call) -> bytes:
        content, total = bytearray(), None
        while total is None or len(content) < total:
            try:
                answer = self._link.ask(
                    call,
                    fs.FileDownloadRequest,
                    fs.FileDownloadResponse,
                    "certificate download",
                    off=len(content),
                    name=self._path,
                )
            except BoardError as exc:
                if not content and exc.group == GroupId.FILE_MANAGEMENT and exc.rc in _NO_FILE:
                    return b""
                raise
            if total is None:
                total = answer.len
                if total is None or not 0 <= total <= FILE_LIMIT:
                    problem = f"the board's certificate file has no length, or one over {FILE_LIMIT} octets"
                    raise ProtocolViolation(problem)
            short = not answer.data and len(content) < total
            if answer.off != len(content) or short or len(content) + len(answer.data) > total:
                problem = "the board's answer to certificate download is not the piece that was asked for"
                raise ProtocolViolation(problem)
            content += answer.data
        return bytes(content)


def _text(key: str, data: bytes) -> str:
    try:
        value = data.rstrip(b"\x00").decode()
    except UnicodeDecodeError:
        problem = f"the board's value of {quote(key)} is no text"
        raise ProtocolViolation(problem) from None
    if len(value) > _VALUE_LIMIT:
        problem = f"the board's value of {quote(key)} has {len(value)} characters"
        raise ProtocolViolation(problem)
    return value
