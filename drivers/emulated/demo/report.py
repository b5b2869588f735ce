"""What came out: the contract's files, judged by a tool that is not ours (openssl) and by the cloud's own list."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivers.emulated.bench.line import Board, Line
from drivers.emulated.bench.process import run
from drivers.emulated.demo.killing import Kill
from hal.errors import StationError


@dataclass(frozen=True, slots=True)
class Round:
    """Boards of one round, and what their nests showed at the end; records go below `folder`."""

    folder: Path
    boards: Sequence[Board]
    nests: Sequence[dict[str, Any]]


@dataclass(slots=True)
class Findings:
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def write(line: Line, rounds: Sequence[Round], kills: Sequence[Kill], queued: int) -> Findings:
    """The records of all rounds, and report.json, while the station still runs."""
    found = Findings()
    layout = line.layout
    enrolled = {str(item["registrationId"]) for item in line.cloud.enrollments()}
    units: list[dict[str, Any]] = []
    for number, round_ in enumerate(rounds, 1):
        folder = round_.folder
        (folder / "ca").mkdir(parents=True, exist_ok=True)
        shutil.copytree(layout.officer, folder / "officer", dirs_exist_ok=True)
        _authority(line, folder / "ca")
        for board, nest in zip(round_.boards, round_.nests, strict=True):
            name = str(nest["registration_id"])
            run(layout.hallmark("units", "export", name, "--out", str(folder / "units")), layout.environment)
            units.append(_judge(line, number, board, nest, folder / "units" / name, enrolled, found))
    certificates = json.loads(run(layout.hallmark("ca", "status", "--json"), layout.environment))["issued"]
    if certificates != len(units):
        found.problems.append(f"the ledger has {certificates} certificates for {len(units)} boards")
    if len(enrolled) != len(units):
        found.problems.append(f"the cloud has {len(enrolled)} enrollments for {len(units)} boards")
    text = json.dumps(
        {
            "ok": found.ok,
            "problems": found.problems,
            "units": [unit for unit in units if unit["round"] == 1],
            "units_of_the_killed_round": [unit for unit in units if unit["round"] != 1],
            "kills": [dataclasses.asdict(kill) for kill in kills],
            "restarts": {name: daemon.starts - 1 for name, daemon in line.daemons.items()},
            "queued_while_the_cloud_was_away": queued,
            "certificates": certificates,
            "enrollments": len(enrolled),
        },
        indent=2,
    )
    (rounds[0].folder / "report.json").write_text(text + "\n")
    return found


def keep_tpms(round_: Round) -> None:
    """The TPMs' state folders, once the boards are off."""
    for board, nest in zip(round_.boards, round_.nests, strict=True):
        target = round_.folder / "units" / str(nest["registration_id"]) / "tpm"
        shutil.copytree(board.state / "tpm", target, dirs_exist_ok=True)


def _authority(line: Line, folder: Path) -> None:
    state = line.layout.root / "var/lib/hallmark/signer"
    for source, name in (("ca-root.pem", "root.pem"), ("ca-chain.pem", "intermediate.pem")):
        shutil.copy(state / source, folder / name)


def _judge(
    line: Line,
    number: int,
    board: Board,
    nest: dict[str, Any],
    folder: Path,
    enrolled: set[str],
    found: Findings,
) -> dict[str, Any]:
    name = str(nest["registration_id"])
    record = line.unit(name)
    problems = []
    if nest["outcome"] != "PASS":
        problems.append(f"outcome is {nest['outcome']}")
    if name not in enrolled:
        problems.append("not in the cloud")
    try:
        ca = folder.parents[1] / "ca"
        run(
            [
                *(
                    "openssl",
                    "verify",
                    "-x509_strict",
                    "-purpose",
                    "sslclient",
                    "-CAfile",
                    str(ca / "root.pem"),
                ),
                *("-untrusted", str(ca / "intermediate.pem"), str(folder / "device.pem")),
            ]
        )
    except StationError as error:
        problems.append(str(error))
    found.problems += [f"{name}: {problem}" for problem in problems]
    return {
        "round": number,
        "registration_id": name,
        "unit": nest["unit"],
        "nest": nest["name"],
        "sku": nest["sku"],
        "serial": board.serial,
        "outcome": nest["outcome"],
        "uploaded": name in enrolled,
        "visits": len(record.get("visits", [])),
        "seconds": round(float(nest["elapsed"] or 0.0), 3),
        "problems": problems,
    }
