"""Which TPM commands change what a TPM keeps: the TPM itself says so (TPMA_CC.nv, TPM 2.0 Part 2, 8.9)."""

from __future__ import annotations

import re
from pathlib import Path


def code(command: bytes) -> int:
    """A command's code: tag (2), size (4), code (4)."""
    return int.from_bytes(command[6:10], "big")


def codes(told: str) -> frozenset[int]:
    """The codes of commands with the attribute nv in what `tpm2_getcap commands` prints."""
    found = re.findall(r"commandIndex:\s+(0x[0-9a-f]+)(?:(?!commandIndex)[\s\S])*?\bnv:\s+1", told)
    return frozenset(int(number, 16) for number in found)


def write(path: Path, numbers: frozenset[int]) -> None:
    path.write_text("\n".join(f"{number:#x}" for number in sorted(numbers)))


def read(path: Path) -> frozenset[int]:
    return frozenset(int(number, 16) for number in path.read_text().split())
