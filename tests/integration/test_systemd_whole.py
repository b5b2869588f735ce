"""The real thing: installed by docs/set-up.md's own commands under a real systemd, boards provisioned and uploaded.

Twice, as the page leads to a bench line and to a production line. In a container that shares this machine's
/usr and has a file system of its own in memory otherwise. The boards, their TPMs, the HSM and the cloud are
emulated; processes, units, users, sockets, sandboxes and credentials are the real ones. Not enforced in
such a container, thus not seen here: IPAddressDeny, and device rules where cgroups are nested.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.systemd_places import hidden_from_units

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("signer", "station", "uploader")
SECONDS = 150
UNIT = """
[Unit]
Description=Sets Hallmark up and looks at it
After=multi-user.target
[Service]
Type=exec
ExecStart={python} -m tests.systemd_whole {line}
WorkingDirectory={root}
Environment=PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
RuntimeMaxSec={seconds}
ExecStopPost=systemctl poweroff --force
Environment=PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + 60),
    pytest.mark.skipif(os.geteuid() != 0, reason="systemd-nspawn needs root"),
    pytest.mark.skipif(
        shutil.which("systemd-nspawn") is None or not Path("/lib/systemd/systemd").exists(),
        reason="systemd-nspawn is not installed (Debian packages systemd-container and systemd)",
    ),
    pytest.mark.skipif(
        sys.base_prefix != "/usr", reason="the container shares /usr: needs the system's Python"
    ),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return set_up("bench", tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return set_up("production", tmp_path_factory.mktemp("production"))


def set_up(line: str, folder: Path) -> dict[str, Any]:
    """What the container's looker wrote."""
    if (reason := hidden_from_units(ROOT)) is not None:
        pytest.skip(reason)
    wheels, units, out = folder / "wheels", folder / "system", folder / "out"
    for made in (wheels, units / "multi-user.target.wants", out):
        made.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps", "--no-index",
         "--no-build-isolation", "-w", str(wheels), str(ROOT)],
        check=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    (units / "look.service").write_text(
        UNIT.format(python=sys.executable, root=ROOT, seconds=SECONDS, line=line)
    )
    (units / "multi-user.target.wants/look.service").symlink_to("../look.service")
    for masked in ("systemd-firstboot.service", "systemd-networkd.service", "systemd-resolved.service"):
        (units / masked).symlink_to("/dev/null")
    binds = {
        ROOT: ROOT,
        Path(sys.prefix): Path(sys.prefix),
        units: Path("/run/systemd/system"),
        wheels: Path("/carry/wheels"),
        ROOT / "systemd": Path("/carry/systemd"),
        Path("/etc/ld.so.cache"): Path("/etc/ld.so.cache"),  # how ctypes finds libudev
        Path("/etc/ssl"): Path("/etc/ssl"),  # openssl's configuration
    }
    done = subprocess.run(
        # SIGTERM lets it take its container down; killed, it would leave that running.
        ["timeout", "--kill-after=10", str(SECONDS), "systemd-nspawn",
         "--quiet", "--directory=/", "--volatile=yes", "--private-network", "--register=no",
         "--keep-unit", "--console=pipe", f"--machine=hallmark-{line}", f"--bind={out}:/out",
         "--tmpfs=/usr/local/bin", *(f"--bind-ro={source}:{target}" for source, target in binds.items()),
         "--boot", "--", "--unit=multi-user.target"],
        capture_output=True, text=True, timeout=SECONDS + 40, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if not (out / "booted").exists():
        pytest.skip(f"no systemd comes up in a container here: {(done.stderr + done.stdout)[-300:]!r}")
    assert (out / "report.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert "problem" not in found, (
        f"{found['problem']}\n{found.get('snapshot')}\n{found.get('logs')}\n{found['journal'][-6000:]}"
    )
    found["folder"] = out
    return found


@pytest.mark.parametrize("line", ["bench", "production"])
def test_the_set_up_pages_commands_lead_to_a_running_line(line: str, request: pytest.FixtureRequest) -> None:
    report: dict[str, Any] = request.getfixturevalue(line)
    assert [item["code"] for item in report["commands"]] == [0] * len(report["commands"])
    assert {item["state"] for item in report["checked"]} <= {"fine", "warning"}
    assert any("ready, issues as" in item["detail"] for item in report["checked"])


def test_the_three_services_say_that_they_are_ready_and_keep_their_watchdogs_fed(
    bench: dict[str, Any],
) -> None:
    for service in SERVICES:
        found = bench["services"][service]
        assert (found["ActiveState"], found["SubState"], found["Type"]) == ("active", "running", "notify")
        assert found["NRestarts"] == "0"
        assert found["WatchdogUSec"] not in ("0", "infinity")
        assert found["StatusText"]
    assert "Watchdog timeout" not in bench["journal"]


def test_boards_pass_and_are_uploaded_with_one_certificate_each(bench: dict[str, Any]) -> None:
    found = units(bench)
    assert sorted((unit["sku"], unit["outcome"]) for unit in found) == [
        ("gw-200", "PASS"),
        ("gw-300", "PASS"),
    ]
    assert [unit["enrollments"][0]["state"] for unit in found] == ["acknowledged"] * 2
    assert len(bench["enrollments"]) == 2
    assert any("issued    2" in item["said"] for item in bench["commands"])


def test_each_service_killed_comes_back_and_a_board_under_way_still_passes(bench: dict[str, Any]) -> None:
    restarts = {service: int(bench["after"][service]["NRestarts"]) for service in SERVICES}
    assert restarts == {"signer": 1, "station": 2, "uploader": 1}
    assert {bench["after"][service]["ActiveState"] for service in SERVICES} == {"active"}


def test_the_real_processes_run_as_their_own_users_without_privileges(bench: dict[str, Any]) -> None:
    users = {name: found["user"] for name, found in bench["processes"].items()}
    assert users["signer"] == "hallmark-signer"
    assert users["station"] == users["worker"] == "hallmark"
    assert users["uploader"] == "hallmark-uploader"
    for found in bench["processes"].values():
        assert found["capabilities"] == "0000000000000000"
        assert (found["no new privileges"], found["seccomp"]) == ("1", "2")
    for service in SERVICES:
        assert bench["processes"][service]["words"] == "/opt/hallmark/bin/hallmark"
    assert "CREDENTIALS_DIRECTORY" not in bench["processes"]["station"]["environment"]


def test_in_production_it_runs_with_the_installed_ca_and_refuses_a_software_tpm(
    production: dict[str, Any],
) -> None:
    assert (production["refused"]["outcome"], production["refused"]["problem"]) == (
        "REFUSED",
        "SoftwareTpmRefused",
    )
    issued = [unit for unit in units(production) if unit["sku"] == "gw-100"]
    assert [unit["outcome"] for unit in issued] == ["PASS"]
    folder = production["folder"] / "units" / issued[0]["registration_id"]
    subprocess.run(
        ["openssl", "verify", "-CAfile", str(production["folder"] / "root.pem"),
         "-untrusted", str(folder / "chain.pem"), str(folder / "device.pem")],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip


def test_in_production_signed_set_trust_bundle_and_orders_are_in_force(production: dict[str, Any]) -> None:
    assert production["verified"]["valid"] is True
    assert {unit["configuration"] for unit in units(production)} == {production["verified"]["sha256"]}
    assert (production["trust"]["source"], production["trust"]["serial"]) == ("bundle", 1)
    assert len(production["trust"]["roots"]) == 1
    assert {item["id"]: item["passed"] for item in production["orders"]} == {"WO-1": 0, "WO-2": 1, "WO-3": 1}
    # Signatures are reckoned: the unit of WO-3 has a symmetric key and no certificate.
    counted = {item["order"]: (item["signatures"], item["shipped"]) for item in production["reconciled"]}
    assert counted == {"WO-1": (0, 0), "WO-2": (1, 1), "WO-3": (0, 0)}
    assert [item["drift"] for item in production["reconciled"]] == [0, 0, 0]


def test_in_production_boards_of_both_kinds_are_uploaded_by_the_uploaders_own_keys(
    production: dict[str, Any],
) -> None:
    passed = [unit for unit in units(production) if unit["outcome"] == "PASS"]
    assert sorted(unit["sku"] for unit in passed) == ["gw-100", "gw-100-symmetric"]
    assert [unit["enrollments"][0]["state"] for unit in passed] == ["acknowledged"] * 2
    assert len(production["enrollments"]) == 2


@pytest.mark.parametrize("line", ["bench", "production"])
def test_the_whole_ends_in_order(line: str, request: pytest.FixtureRequest) -> None:
    report: dict[str, Any] = request.getfixturevalue(line)
    for service in SERVICES:
        assert (report["stopped"][service]["ActiveState"], report["stopped"][service]["Result"]) == (
            "inactive",
            "success",
        )


def units(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Their records, as exported."""
    return [json.loads(path.read_text()) for path in (report["folder"] / "units").glob("*/unit.json")]
