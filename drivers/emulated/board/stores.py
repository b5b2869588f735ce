"""The settings group and the file system group: what the station configures and installs. Storage is elsewhere."""

from __future__ import annotations

import hashlib
import zlib
from typing import Final, NoReturn

from smp import file_management as fs_group
from smp import settings_management as settings_group
from smp.file_management import FS_MGMT_ERR
from smp.header import GroupId
from smp.settings_management import SETTINGS_MGMT_ERR

from drivers.emulated.board.server import Answer, Command, Refusal
from drivers.emulated.board.storage import (
    FILE_LIMIT,
    NAME_LIMIT,
    SETTING_LIMIT,
    SETTINGS_LIMIT,
    Files,
    Settings,
)

_ANSWER_OVERHEAD: Final = 48
"""Octets of an answer's header, keys and numbers at most, beside the piece of the file."""


class SettingsGroup:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def commands(self) -> list[Command]:
        return [
            Command(settings_group.ReadSettingRequest, self._read),
            Command(settings_group.WriteSettingRequest, self._write),
            Command(settings_group.DeleteSettingRequest, self._delete),
            Command(settings_group.CommitSettingsRequest, lambda _: {}),
            Command(settings_group.LoadSettingsRequest, self._load),
            Command(settings_group.SaveSettingsRequest, self._save),
        ]

    def _read(self, request: settings_group.ReadSettingRequest) -> Answer:
        value = self._settings.values.get(request.name)
        if value is None:
            _refuse_setting(SETTINGS_MGMT_ERR.KEY_NOT_FOUND)
        most = SETTING_LIMIT if request.max_size is None else max(0, request.max_size)
        return {"val": value[:most]}

    def _write(self, request: settings_group.WriteSettingRequest) -> Answer:
        if not 0 < len(request.name.encode("utf-8", "replace")) <= NAME_LIMIT:
            _refuse_setting(SETTINGS_MGMT_ERR.KEY_TOO_LONG)
        full = request.name not in self._settings.values and len(self._settings.values) >= SETTINGS_LIMIT
        if len(request.val) > SETTING_LIMIT or full:
            _refuse_setting(SETTINGS_MGMT_ERR.UNKNOWN)
        self._settings.values[request.name] = request.val
        return {}

    def _delete(self, request: settings_group.DeleteSettingRequest) -> Answer:
        if self._settings.values.pop(request.name, None) is None:
            _refuse_setting(SETTINGS_MGMT_ERR.KEY_NOT_FOUND)
        return {}

    def _load(self, request: object) -> Answer:
        del request
        self._settings.load()
        return {}

    def _save(self, request: object) -> Answer:
        del request
        self._settings.save()
        return {}


class FilesGroup:
    """An upload becomes visible as a whole with its last piece."""

    def __init__(self, files: Files, buffer_size: int) -> None:
        self._files = files
        self._piece = buffer_size - _ANSWER_OVERHEAD
        self._upload: tuple[str, int, bytearray] | None = None
        """Name, length and what has arrived."""

    def commands(self) -> list[Command]:
        return [
            Command(fs_group.FileDownloadRequest, self._download),
            Command(fs_group.FileUploadRequest, self._take),
            Command(fs_group.FileStatusRequest, lambda request: {"len": len(self._content(request.name))}),
            Command(fs_group.FileHashChecksumRequest, self._digest),
            Command(fs_group.FileCloseRequest, self._close),
        ]

    def _content(self, name: str) -> bytes:
        _check_name(name)
        content = self._files.read(name)
        return content if content is not None else _refuse_file(FS_MGMT_ERR.FILE_NOT_FOUND)

    def _download(self, request: fs_group.FileDownloadRequest) -> Answer:
        content = self._content(request.name)
        if not content:
            _refuse_file(FS_MGMT_ERR.FILE_EMPTY)
        if not 0 <= request.off <= len(content):
            _refuse_file(FS_MGMT_ERR.FILE_OFFSET_LARGER_THAN_FILE)
        answer = {"off": request.off, "data": content[request.off : request.off + self._piece]}
        return answer | ({} if request.off else {"len": len(content)})

    def _take(self, request: fs_group.FileUploadRequest) -> Answer:
        _check_name(request.name)
        if request.off == 0:
            length = request.len
            if length is None or not len(request.data) <= length <= FILE_LIMIT:
                _refuse_file(FS_MGMT_ERR.FILE_WRITE_FAILED)
            if not self._files.has_room(request.name):
                _refuse_file(FS_MGMT_ERR.FILE_OPEN_FAILED)
            self._upload = (request.name, length, bytearray())
        if self._upload is None or self._upload[0] != request.name:
            _refuse_file(FS_MGMT_ERR.FILE_OFFSET_NOT_VALID)
        name, length, held = self._upload
        if request.off != len(held):
            # An answer that got lost: the host is told where to go on.
            return {"off": len(held)}
        if len(held) + len(request.data) > length:
            _refuse_file(FS_MGMT_ERR.FILE_WRITE_FAILED)
        held += request.data
        if len(held) == length:
            self._files.write(name, bytes(held))
        return {"off": len(held)}

    def _digest(self, request: fs_group.FileHashChecksumRequest) -> Answer:
        content = self._content(request.name)
        start = request.off or 0
        if start < 0 or start > len(content) or (request.len or 0) < 0:
            _refuse_file(FS_MGMT_ERR.FILE_OFFSET_LARGER_THAN_FILE)
        part = content[start:] if request.len is None else content[start : start + request.len]
        kind = request.type or "sha256"
        output = hashlib.sha256(part).digest() if kind == "sha256" else zlib.crc32(part)
        return {"type": kind, "len": len(part), "output": output} | ({"off": start} if start else {})

    def _close(self, request: object) -> Answer:
        del request
        self._upload = None
        return {}


def _check_name(name: str) -> None:
    if not (name.startswith("/") and name.isascii() and name.isprintable() and len(name) <= NAME_LIMIT):
        _refuse_file(FS_MGMT_ERR.FILE_INVALID_NAME)


def _refuse_setting(rc: SETTINGS_MGMT_ERR) -> NoReturn:
    raise Refusal(rc, GroupId.SETTINGS_MANAGEMENT)


def _refuse_file(rc: FS_MGMT_ERR) -> NoReturn:
    raise Refusal(rc, GroupId.FILE_MANAGEMENT)
