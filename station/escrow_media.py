"""Second media for escrow records: folders on other file systems, each file there whole, synced and read back.

What is written is sealed to the officers already. The file's name is made of the EK's Name in hexadecimal and a number,
never of what a device says as text. Whose turn it is to be written, and what counts, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hal.errors import EscrowIncomplete

SUFFIX: Final = ".p7m"
READ_LIMIT: Final = 1 << 20
VOLATILE: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
"""File systems that a power cut empties."""
MOUNTS: Final = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Medium:
    """A folder that has to be there already: an empty mount point is not the medium.

    `state` is the station's own folder, whose disk doesn't count twice. `bench` takes any folder.
    """

    folder: Path
    state: Path
    bench: bool = False

    @property
    def name(self) -> str:
        return str(self.folder)

    def device(self) -> int | None:
        """The number of the file system that the folder is on now, None while it isn't there."""
        try:
            return self.folder.stat().st_dev
        except OSError:
            return None

    def keep(self, ek_name: bytes, generation: int, sealed: bytes, used: Collection[int] = ()) -> int:
        """Returns the file system's number when the record is durable there and reads back the same.

        EscrowIncomplete if not, or if that file system is one of `used`, which has a copy already. The same record
        again is the same file; another content under its name is never replaced.
        """
        file = f"{ek_name.hex()}-{generation}{SUFFIX}"
        try:
            with self._opened() as folder:
                device = os.fstat(folder).st_dev
                if device in used and not self.bench:
                    raise EscrowIncomplete(f"the escrow medium {self.folder} is on a disk that has a copy")
                if not _is_there(folder, file, sealed):
                    _write(folder, file, sealed)
                if not _is_there(folder, file, sealed):
                    raise EscrowIncomplete(f"the escrow record reads back wrong from {self.folder}")
                return device
        except OSError as error:
            raise EscrowIncomplete(
                f"the escrow medium {self.folder} can't be written: {os.strerror(error.errno or 0)}"
            ) from error

    def check(self) -> None:
        """EscrowIncomplete when nothing could be kept there now. Writes nothing."""
        with self._opened():
            return

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EscrowIncomplete(f"the escrow medium {self.folder} is not there") from error
        try:
            self._check_device(os.fstat(folder).st_dev)
            yield folder
        finally:
            os.close(folder)

    def _check_device(self, device: int) -> None:
        if self.bench:
            return
        if device in (self.state.stat().st_dev, Path("/").stat().st_dev):
            raise EscrowIncomplete(
                f"the escrow medium {self.folder} is not mounted, or on the station's own disk"
            )
        if (kind := _file_system(device)) in VOLATILE:
            raise EscrowIncomplete(f"the escrow medium {self.folder} is a {kind}: a power cut empties it")


def _is_there(folder: int, file: str, sealed: bytes) -> bool:
    """Whether the file has this content. FileExistsError when it has another one, or is no plain file of its own."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return False
    with os.fdopen(handle, "rb") as stream:
        # What the cache holds was just put there: ask the medium.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if stream.read(READ_LIMIT) != sealed:
            raise FileExistsError(17, "another record has this name", file)
    return True


def _write(folder: int, file: str, sealed: bytes) -> None:
    part = f".{file}.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part, dir_fd=folder)
    handle = os.open(
        part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
    )
    with os.fdopen(handle, "wb") as stream:
        stream.write(sealed)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(part, file, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _file_system(device: int) -> str:
    """The type of the mounted file system with that device number (proc(5), mountinfo), empty where it isn't told."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in MOUNTS.read_text("utf-8", "replace").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [wanted]:
            return after.split(" ", 1)[0]
    return ""
