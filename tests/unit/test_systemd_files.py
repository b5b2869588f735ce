"""The systemd files keep their promises, by systemd's own judgement where it has one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from station.paths import Paths

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
UNITS = SYSTEMD / "system"
SERVICES = ("signer", "station", "uploader")
EXPOSURE_LIMIT = 1.8
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed (Debian package systemd)",
)


def read(name: str) -> dict[str, list[str]]:
    """Every setting of a unit, sections put together: name to values in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@needs_systemd
@pytest.mark.parametrize("service", SERVICES)
def test_exposure_is_at_most_what_we_promise(service: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / f"hallmark-{service}.service")],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    level = re.search(r"exposure level for hallmark-\w+\.service: ([0-9.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= EXPOSURE_LIMIT


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(str(unit) for unit in tmp_path.iterdir())],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    about_us = [line for line in done.stderr.splitlines() if "hallmark" in line]
    assert not about_us
    assert done.returncode == 0


@needs_systemd
@pytest.mark.parametrize("tool", ["sysusers", "tmpfiles"])
def test_users_and_folders_are_made_in_a_fresh_root(tool: str, tmp_path: Path) -> None:
    if shutil.which(f"systemd-{tool}") is None:
        pytest.skip(f"systemd-{tool} is not installed")
    etc = tmp_path / "etc"
    etc.mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "sysusers.d/hallmark.conf")],
        capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    names = {line.split(":")[0] for line in (etc / "passwd").read_text().splitlines()}
    assert {"hallmark", "hallmark-signer", "hallmark-uploader"} <= names
    groups = {line.split(":")[0]: line.split(":")[3] for line in (etc / "group").read_text().splitlines()}
    assert groups["dialout"] == groups["tss"] == "hallmark"
    assert groups["hallmark-operators"] == ""
    if tool == "tmpfiles":
        done = subprocess.run(
            ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(SYSTEMD / "tmpfiles.d/hallmark.conf")],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert "hallmark.conf" not in done.stderr
        modes = {
            path: oct((tmp_path / path).stat().st_mode & 0o7777) for path in ("run/hallmark", "etc/hallmark")
        }
        assert modes["etc/hallmark"] == "0o755"
        if done.returncode == 0:  # as root; another user can't give folders away
            assert modes["run/hallmark"] == "0o1775"
            assert (tmp_path / "run/hallmark/signer").stat().st_mode & 0o7777 == 0o2750
            assert (tmp_path / "etc/hallmark/credentials").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_notifies_is_watched_and_comes_back(service: str) -> None:
    unit = read(f"hallmark-{service}.service")
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) > 0
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit["User"] == [{"station": "hallmark"}.get(service, f"hallmark-{service}")]
    assert "DynamicUser" not in unit


def test_only_the_uploader_has_internet_addresses() -> None:
    families = {
        name: set(read(f"hallmark-{name}.service")["RestrictAddressFamilies"][0].split()) for name in SERVICES
    }
    assert families == {
        "signer": {"AF_UNIX"},
        "station": {"AF_UNIX", "AF_NETLINK"},
        "uploader": {"AF_UNIX", "AF_INET", "AF_INET6"},
    }
    for name in ("signer", "station"):
        assert read(f"hallmark-{name}.service")["IPAddressDeny"] == ["any"]


def test_udev_reaches_the_station() -> None:
    unit = read("hallmark-station.service")
    assert "PrivateNetwork" not in unit  # udev's events don't reach another network namespace
    assert "PrivateUsers" not in unit  # libudev drops what comes from an unmapped root
    assert "PrivateDevices" not in unit


def test_each_credential_goes_to_one_service_and_none_to_the_station() -> None:
    given = {name: read(f"hallmark-{name}.service").get("LoadCredential", []) for name in SERVICES}
    assert given == {
        "signer": ["ca-pin:/etc/hallmark/credentials/ca-pin"],
        "station": [],
        "uploader": ["dps-key:/etc/hallmark/credentials/dps-key"],
    }


def test_no_service_sees_another_ones_state() -> None:
    assert read("hallmark-signer.service")["InaccessiblePaths"] == ["-/var/lib/hallmark/station"]
    assert read("hallmark-station.service")["InaccessiblePaths"] == ["-/var/lib/hallmark/signer"]
    assert read("hallmark-uploader.service")["InaccessiblePaths"] == ["-/var/lib/hallmark"]
    assert "StateDirectory" not in read("hallmark-uploader.service")


@pytest.mark.parametrize(
    ("name", "path", "group", "mode"),
    [
        ("signer", Paths().signer_socket, "hallmark", "0660"),
        ("outbox", Paths().outbox_socket, "hallmark-uploader", "0660"),
        ("status", Paths().status_socket, "hallmark", "0666"),
    ],
)
def test_sockets_are_where_the_program_looks_and_open_to_whom_they_are_for(
    name: str, path: Path, group: str, mode: str
) -> None:
    unit = read(f"hallmark-{name}.socket")
    assert unit["ListenStream"] == [str(path)]
    assert unit["FileDescriptorName"] == [name]
    assert (unit["SocketGroup"], unit["SocketMode"]) == ([group], [mode])
    service = unit["Service"][0]
    assert f"hallmark-{name}.socket" in " ".join(read(service)["Sockets"])


def test_state_folders_are_where_the_program_looks() -> None:
    assert f"/var/lib/{read('hallmark-station.service')['StateDirectory'][0]}" == str(Paths().state)
    assert f"/var/lib/{read('hallmark-signer.service')['StateDirectory'][0]}" == str(Paths().signer_state)


def test_the_services_share_one_sandbox() -> None:
    """What is common is word for word the same: a gap in one would otherwise go unseen."""
    blocks = []
    for name in SERVICES:
        text = (UNITS / f"hallmark-{name}.service").read_text()
        blocks.append(text.split("# --- what it may not\n")[1].split("SystemCallErrorNumber")[0])
    assert blocks[0] == blocks[1] == blocks[2]
    assert "NoNewPrivileges=yes" in blocks[0]


def test_udev_rules_are_well_formed_and_leave_nothing_to_modem_managers() -> None:
    pair = r'[A-Z_]+(\{[A-Za-z_/]+\})?(==|!=|=|\+=|:=)"[^"]*"'
    rules = [
        line
        for line in (SYSTEMD / "udev/60-hallmark.rules").read_text().splitlines()
        if line and line[0] != "#"
    ]
    for rule in rules:
        assert re.fullmatch(rf"{pair}(, {pair})*", rule), rule
    assert any('ENV{ID_MM_DEVICE_IGNORE}="1"' in rule and 'SUBSYSTEM=="usb"' in rule for rule in rules)
    assert any('ATTR{latency_timer}="1"' in rule and 'DRIVER=="ftdi_sio"' in rule for rule in rules)
