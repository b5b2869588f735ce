"""The units under a real systemd, in a container: sandboxes, users, sockets, credentials, journal, watchdog, restart.

The processes are stand-ins (tests/systemd_probe.py); what is looked at is what the units give and refuse them. The
container shares this machine's /usr and needs root, systemd-nspawn and cgroups; without these the test says so.
Not enforced in such a container, thus not seen here: IPAddressDeny, and device rules where cgroups are nested.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.systemd_places import hidden_from_units

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "systemd"
PROBE = ROOT / "tests/systemd_probe.py"
SECONDS = 110
LOOK = """
[Unit]
Description=Looks at Hallmark's units
[Service]
Type=exec
ExecStart={python} {probe} look
Environment=PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="systemd-nspawn needs root"),
    pytest.mark.skipif(
        shutil.which("systemd-nspawn") is None or not Path("/lib/systemd/systemd").exists(),
        reason="systemd-nspawn is not installed (Debian packages systemd-container and systemd)",
    ),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the container's looker wrote."""
    if (reason := hidden_from_units(ROOT)) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("systemd")
    units, out, secrets = folder / "system", folder / "out", folder / "etc-hallmark"
    for made in (units, out, secrets / "credentials"):
        made.mkdir(parents=True)
    (secrets / "credentials/ca-pin").write_text("1234")
    (secrets / "credentials/dps-key").write_text("key")
    (secrets / "credentials").chmod(0o700)  # as tmpfiles.d makes it where the folder isn't bound read-only
    python = Path(sys.executable)
    for unit in (SYSTEMD / "system").iterdir():
        text = re.sub(
            r"^ExecStart=\S+ (\S+)$",
            lambda match: f"ExecStart={python} {PROBE} {'station' if match[1] == 'run' else match[1]}",
            unit.read_text(), flags=re.MULTILINE,
        )  # fmt: skip
        (units / unit.name).write_text(text)
        if unit.name.endswith(".service"):
            extra = f"[Service]\nEnvironment=PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1\n"
            if "uploader" in unit.name:
                extra += "WatchdogSec=2\nRestartSec=100ms\n"
            (units / f"{unit.name}.d").mkdir()
            (units / f"{unit.name}.d/test.conf").write_text(extra)
    (units / "look.service").write_text(LOOK.format(python=python, probe=PROBE, root=ROOT))
    wants = units / "multi-user.target.wants"
    wants.mkdir()
    (wants / "look.service").symlink_to("../look.service")
    (wants / "hallmark.target").symlink_to("../hallmark.target")
    wanted = units / "hallmark.target.wants"
    wanted.mkdir()
    for unit in (SYSTEMD / "system").iterdir():
        if "WantedBy=hallmark.target" in unit.read_text():
            (wanted / unit.name).symlink_to(f"../{unit.name}")
    for masked in ("systemd-firstboot.service", "systemd-networkd.service", "systemd-resolved.service"):
        (units / masked).symlink_to("/dev/null")
    binds = {
        ROOT: ROOT,
        units: Path("/run/systemd/system"),
        SYSTEMD / "sysusers.d": Path("/run/sysusers.d"),
        SYSTEMD / "tmpfiles.d": Path("/run/tmpfiles.d"),
        secrets: Path("/etc/hallmark"),
        Path("/etc/ld.so.cache"): Path(
            "/etc/ld.so.cache"
        ),  # how ctypes finds libudev; /etc is empty otherwise
    }
    done = subprocess.run(
        # SIGTERM lets it take its container down; killed, it would leave that running.
        ["timeout", "--kill-after=10", str(SECONDS), "systemd-nspawn",
         "--quiet", "--directory=/", "--volatile=yes", "--private-network", "--register=no",
         "--keep-unit", "--console=pipe", "--machine=hallmark-test", f"--bind={out}:/out",
         *(f"--bind-ro={source}:{target}" for source, target in binds.items()),
         "--boot", "--", "--unit=multi-user.target"],
        capture_output=True, text=True, timeout=SECONDS + 40, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if not (out / "booted").exists():
        pytest.skip(f"no systemd comes up in a container here: {(done.stderr + done.stdout)[-300:]!r}")
    assert (out / "report.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    said = [
        str(entry.get("MESSAGE"))
        for entry in found["journal"]
        if "hallmark-" in str(entry.get("_SYSTEMD_UNIT"))
    ]
    assert "station" in found, "\n".join(said[-20:])
    return found


def uploader(report: dict[str, Any]) -> dict[str, Any]:
    for entry in report["journal"]:
        if str(entry.get("MESSAGE", "")).startswith('{"uploader"'):
            found: dict[str, Any] = json.loads(entry["MESSAGE"])["uploader"]
            return found
    pytest.fail("the uploader's findings are not in the journal")


def test_all_services_come_up_as_their_own_users(report: dict[str, Any]) -> None:
    assert report["units"]["station"]["ActiveState"] == "active"
    assert report["units"]["signer"]["ActiveState"] == "active"
    assert report["units"]["station"]["StatusText"] == "probing"
    assert report["station"]["user"] == "hallmark"
    assert report["signer"]["user"] == "hallmark-signer"
    assert uploader(report)["user"] == "hallmark-uploader"
    for found in (report["station"], report["signer"], uploader(report)):
        assert found["capabilities"] == ["CapEff:\t0000000000000000"]


def test_credentials_reach_one_process_each(report: dict[str, Any]) -> None:
    assert report["signer"]["credentials"] == ["ca-pin"]
    assert report["station"]["credentials"] == []
    assert uploader(report)["credentials"] == ["dps-key"]
    for found in (report["station"], report["signer"], uploader(report)):
        assert found["pin file"] == "Permission denied"


def test_only_the_uploader_can_speak_to_the_internet(report: dict[str, Any]) -> None:
    refused = "Address family not supported by protocol"
    assert (report["station"]["internet"], report["station"]["netlink"]) == (refused, "ok")
    assert (report["signer"]["internet"], report["signer"]["netlink"]) == (refused, refused)
    assert (uploader(report)["internet"], uploader(report)["netlink"]) == ("ok", refused)


def test_each_reaches_its_own_state_only(report: dict[str, Any]) -> None:
    assert report["station"]["station state"] == "ok"
    assert report["signer"]["signer state"] == "ok"
    for found, other in (
        (report["station"], "signer state"),
        (report["signer"], "station state"),
        (uploader(report), "signer state"),
        (uploader(report), "station state"),
    ):
        assert found[other] in ("Permission denied", "No such file or directory")
    for found in (report["station"], report["signer"], uploader(report)):
        assert found["usr"] == "Read-only file system"


def test_sockets_are_passed_and_open_to_whom_they_are_for(report: dict[str, Any]) -> None:
    assert report["station"]["passed"] == ["outbox", "status"]
    assert report["station"]["signer socket"] == "ok"
    assert uploader(report)["known to the station as"] == "hallmark-uploader"
    assert uploader(report)["signer socket"] == "Permission denied"
    assert report["signer"]["outbox socket"] == "Permission denied"
    assert report["folders"]["/run/hallmark"] == ["0o1775", "root", "hallmark"]
    assert report["folders"]["/run/hallmark/signer"] == ["0o2750", "hallmark-signer", "hallmark"]
    assert report["folders"]["/var/lib/hallmark/station"] == ["0o700", "hallmark", "hallmark"]
    assert report["folders"]["/var/lib/hallmark/signer"] == ["0o700", "hallmark-signer", "hallmark-signer"]


def test_c_callbacks_work_without_writable_executable_memory(report: dict[str, Any]) -> None:
    assert [found["callbacks"] for found in (report["station"], report["signer"], uploader(report))] == [
        7,
        7,
        7,
    ]


def test_the_stations_machinery_works_in_its_sandbox(report: dict[str, Any]) -> None:
    """Database, udev's netlink, TPM callbacks, and a worker that confines itself."""
    assert report["station"]["machinery"] == {
        "worker": "confined",
        "udev": "int",
        "tcti": "PyTCTI",
        "http": "PoolManager",
    }


def test_a_hanging_loop_ends_by_the_watchdog_and_the_service_comes_back(report: dict[str, Any]) -> None:
    assert int(report["units"]["uploader"]["NRestarts"]) >= 1
    said = " ".join(str(entry.get("MESSAGE")) for entry in report["journal"])
    assert "Watchdog timeout" in said
    assert int(report["units"]["station"]["NRestarts"]) == 0


def test_logs_arrive_as_fields_of_the_journal(report: dict[str, Any]) -> None:
    entries = [entry for entry in report["journal"] if entry.get("HALLMARK_ROLE") == "station"]
    assert entries
    assert (entries[0]["HALLMARK_UNIT"], entries[0]["HALLMARK_NEST"], entries[0]["HALLMARK_STEP"]) == (
        "u-1",
        "A",
        "flash",
    )
    assert entries[0]["SYSLOG_IDENTIFIER"] == "hallmark-station"
    assert entries[0]["_SYSTEMD_UNIT"] == "hallmark-station.service"
