"""What runs inside the containers of test_systemd_whole: docs/set-up.md's commands, a line's equipment, and boards.

Its one argument says which line the page is followed to: bench or production. Runs as root in the test's own
environment; what it installs runs in its own, from /opt/hallmark. Everything that it sees goes to /out/report.json.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drivers.emulated import image
from drivers.emulated.bench import softhsm, status
from drivers.emulated.bench.layout import softhsm_module
from drivers.emulated.bench.process import wait_for
from tests.fixtures_line import KEYED

ROOT = Path(__file__).resolve().parents[1]
OUT, BENCH = Path("/out"), Path("/run/bench")
ETC = Path("/etc/hallmark")
STATUS = Path("/run/hallmark/status.sock")
SERVICES = ("signer", "station", "uploader")
TOKEN = "hallmark-ca"
STATION_TOML = """
[station]
name = "line-1"
mode = "{mode}"
drivers = ["port-polling", "serial", "smp-serial", "tcti-tunnel", "pkcs11", "azure-dps"]
minimum_free_mib = 16

[[discovery]]
driver = "port-polling"
settings = {{ paths = ["/run/bench/nest-*"], serial_ports = false, interval = 0.1 }}

{nests}
[signer]
settings = {{ module = "{module}", token = "{token}" }}

[escrow]
officers = ["trust/officer.pem"]

[[sink]]
name = "dps"
driver = "azure-dps"
settings = {{ endpoint = "{endpoint}", policy = "station", key = "dps-key" }}
"""
NEST = """
[[nest]]
name = "{name}"
place = "/run/bench/nest-{place}"
recipe = "{recipe}.toml"
"""
UPLOAD_KEY = """
[device_keys]
upload_key = "trust/upload.pem"
"""
IMAGE = "gw-200-1.4.2.bin"
NESTS = {
    "bench": {"A": "gw-200", "B": "gw-300"},
    # A software TPM, which production refuses; a board with its own key and certificate; one with a symmetric key.
    "production": {"A": "gw-200", "B": "gw-100", "C": "gw-100-symmetric"},
}
WITHOUT_TPM = ("gw-100", "gw-100-symmetric")
SOFTHSM_DROP_IN = "[Service]\nEnvironment=SOFTHSM2_CONF=/etc/hallmark/local/softhsm2.conf\n"

report: dict[str, Any] = {"commands": []}


def said(*words: str, **options: Any) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **options)
    return done.stdout + done.stderr


def blocks(line: str) -> list[str]:
    """The commands of docs/set-up.md that are marked to be run on every line, and those for this one."""
    text = (ROOT / "docs/set-up.md").read_text()
    return re.findall(rf"^```sh (?:run|{line})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def note(stage: str) -> None:
    """For whoever looks at a container that hangs."""
    with (OUT / "stages").open("a") as stages:
        stages.write(f"{time.monotonic():.1f} {stage}\n")


def run(block: str) -> None:
    note(block.partition("\n")[0])
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd="/carry", capture_output=True, text=True, timeout=60,
        check=False, stdin=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    )  # fmt: skip
    seconds = round(time.monotonic() - began, 1)
    report["commands"].append(
        {"commands": block, "code": done.returncode, "said": done.stdout + done.stderr, "seconds": seconds}
    )
    if done.returncode:
        raise RuntimeError(f"{block}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


def share_packages() -> None:
    """The carried wheels are Hallmark's alone: the libraries are those of the test's own environment."""
    site = next(Path("/opt/hallmark/lib").glob("python3.*/site-packages"))
    ours = next(Path(sys.prefix).glob("lib/python3.*/site-packages"))
    (site / "libraries.pth").write_text(f"{ours}\n")


def equipment(name: str, *words: str, user: str | None = None) -> subprocess.Popen[bytes]:
    log = (BENCH / f"{name}.log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
        user=user, group=user, extra_groups=[] if user else None, env={**os.environ, "HOME": "/"},
    )  # fmt: skip


def cloud() -> str:
    """Its address."""
    process = equipment(
        "dps", "drivers.emulated.dps", "--state", str(BENCH / "dps.db"), "--policy", "station",
        "--key-file", str(ETC / "credentials/dps-key"), "--control", str(BENCH / "dps.sock"),
    )  # fmt: skip
    return str(json.loads(process.stdout.readline() if process.stdout else b"")["endpoint"])


def board(nest: str, sku: str) -> None:
    """As the station's user, to whom its terminal then belongs, as a real port does through the group dialout."""
    place = nest.lower()
    tpm = ("--no-tpm",) if sku in WITHOUT_TPM else ("--ek-ca", str(BENCH / "ek-ca"))
    equipment(
        f"board-{place}", "drivers.emulated.board", "--state", str(BENCH / f"board-{place}"),
        "--port", str(BENCH / f"nest-{place}"), *tpm, "--board", sku,
        "--serial", f"SN-{nest}", "--baud", "921600", "--unplugged", user="hallmark",
    )  # fmt: skip
    wait_for(f"board {nest}", 30, (BENCH / f"board-{place}/control").exists)


def control(nest: str, word: str) -> None:
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(20)
        asked.connect(str(BENCH / f"board-{nest}/control"))
        asked.sendall(word.encode() + b"\n")
        answer = json.loads(asked.makefile("rb").readline())
    if not answer.get("ok"):
        raise RuntimeError(f"{word}: {answer}")


def factory(line: str) -> None:
    """What a factory brings: an HSM, its PIN, station.toml, a cloud, boards, and their TPMs' maker's roots."""
    BENCH.mkdir(exist_ok=True)
    shutil.chown(BENCH, "hallmark", "hallmark")
    tokens = Path("/var/lib/hallmark/signer/tokens")
    tokens.mkdir()
    local = ETC / "local/softhsm2.conf"
    local.parent.mkdir()
    local.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(local)
    pin = secrets.token_hex(8)
    softhsm.make_token(TOKEN, pin, {"SOFTHSM2_CONF": os.environ["SOFTHSM2_CONF"]})
    credential("ca-pin", pin)
    credential("dps-key", base64.b64encode(secrets.token_bytes(32)).decode())
    drop_in("signer", SOFTHSM_DROP_IN)
    drop_in("uploader", "[Service]\nRestartSec=1\n")
    nests = NESTS[line]
    text = STATION_TOML.format(
        mode=line, module=softhsm_module(), token=TOKEN, endpoint=cloud(),
        nests="".join(NEST.format(name=name, place=name.lower(), recipe=sku) for name, sku in nests.items()),
    )  # fmt: skip
    for name, sku in nests.items():
        board(name, sku)
    maker = Path("~/vendors/swtpm").expanduser()
    maker.mkdir(parents=True)
    for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem"):
        shutil.copy(BENCH / "ek-ca" / name, maker / name)
        (maker / name).chmod(0o644)
    if line == "production":
        text += UPLOAD_KEY
        boards_without_tpm()
    (ETC / "station.toml").write_text(text)


def boards_without_tpm() -> None:
    """Their recipes, and docs/symmetric-keys.md's key pair of the uploader with its drop-in."""
    (ETC / "recipes/gw-100.toml").write_text(KEYED)
    recipe = ETC / "recipes/gw-100-symmetric.toml"
    recipe.write_text(recipe.read_text().replace("gw-100-symmetric-1.4.2.bin", IMAGE))
    run(
        "cd ~\n"
        "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out upload-key\n"
        "openssl pkey -in upload-key -pubout -out /etc/hallmark/trust/upload.pem\n"
        "install -m 0600 upload-key /etc/hallmark/credentials/upload-key"
    )
    drop_in("uploader", "[Service]\nLoadCredential=upload-key:/etc/hallmark/credentials/upload-key\n")


def credential(name: str, value: str) -> None:
    path = ETC / "credentials" / name
    path.touch(mode=0o600)
    path.write_text(value)


def drop_in(service: str, text: str) -> None:
    """As `systemctl edit` makes them."""
    folder = Path(f"/etc/systemd/system/hallmark-{service}.service.d")
    folder.mkdir(exist_ok=True)
    (folder / f"{len(list(folder.iterdir()))}.conf").write_text(text)
    said("systemctl", "daemon-reload")


def images(_line: str) -> None:
    for sku in ("gw-200", "gw-300"):
        built = image.build("1.4.2", secrets.token_bytes(64 * 1024))
        (ETC / f"images/{sku}-1.4.2.bin").write_bytes(built)


def token_files(_line: str) -> None:
    """An HSM has no files; a SoftHSM token's are the signer's, also those that root's commands made."""
    tokens = Path("/var/lib/hallmark/signer/tokens")
    for path in (tokens, *tokens.rglob("*")):
        shutil.chown(path, "hallmark-signer", "hallmark-signer")


AFTER = {"cp -rn": factory}
BEFORE = {"hallmark recipe sign-images": images, "systemctl start": token_files}
"""Done before, or after, the block that begins so."""


def snapshot() -> dict[str, Any] | None:
    found = status.ask(STATUS, "/v1/status")
    return found if isinstance(found, dict) and "nests" in found else None


def nest(name: str) -> dict[str, Any]:
    found = snapshot()
    return next((item for item in found["nests"] if item["name"] == name), {}) if found else {}


def show(service: str) -> dict[str, str]:
    words = "ActiveState,SubState,NRestarts,StatusText,MainPID,Result,Type,WatchdogUSec"
    lines = said("systemctl", "show", f"hallmark-{service}", f"--property={words}").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def passed(name: str) -> bool:
    found = nest(name)
    if found.get("state") == "done" and found.get("outcome") not in ("", None, "PASS", "ERROR", "ABORTED"):
        raise RuntimeError(f"nest {name}: {found}")
    return found.get("state") == "done" and found.get("outcome") == "PASS"


def acknowledged(count: int) -> bool:
    found = snapshot()
    return bool(found) and found is not None and found["outbox"].get("acknowledged") == count


def kill(*services: str) -> None:
    """SIGKILL, and back by systemd: other processes, active, which means that each said READY."""
    before = {service: show(service)["MainPID"] for service in services}
    for pid in before.values():
        os.kill(int(pid), signal.SIGKILL)

    def back() -> bool:
        now = {service: show(service) for service in services}
        return all(
            found["ActiveState"] == "active" and found["MainPID"] not in ("0", before[service])
            for service, found in now.items()
        )

    wait_for(f"{services} to be back", 30, back)


def processes() -> dict[str, dict[str, Any]]:
    """What the kernel says of each service's main process and, of the station, of a worker."""
    found = {}
    for service in SERVICES:
        pid = int(show(service)["MainPID"])
        found[service] = process(pid)
        if service == "station":
            threads = Path(f"/proc/{pid}/task").glob("*/children")
            workers = [int(child) for thread in threads for child in thread.read_text().split()]
            found["worker"] = process(workers[0])
    return found


def process(pid: int) -> dict[str, Any]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {
        "user": Path(f"/proc/{pid}").owner(),
        "capabilities": fields["CapEff"],
        "no new privileges": fields["NoNewPrivs"],
        "seccomp": fields["Seccomp"],
        "program": Path(f"/proc/{pid}/exe").readlink().name,
        "words": Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1].decode(),
        "environment": sorted(item.partition(b"=")[0].decode() for item in environment if item),
    }


def follow(line: str) -> None:
    """The page from its first command to its last."""
    for block in blocks(line):
        around(BEFORE, block, line)
        run(block)
        if "install.sh programs" in block:
            share_packages()
        around(AFTER, block, line)
    report["checked"] = json.loads(said("/opt/hallmark/bin/hallmark", "check", "--json"))
    wait_for("the station to answer", 40, snapshot)


def around(acts: Mapping[str, Callable[[str], None]], block: str, line: str) -> None:
    for beginning, act in acts.items():
        if block.startswith(beginning):
            note(act.__name__)
            act(line)


def bench() -> None:
    note("board A")
    control("a", "plug")
    wait_for("board A to pass", 40, lambda: passed("A"))
    wait_for("the upload", 40, lambda: acknowledged(1))
    note("looking")
    report["services"] = {service: show(service) for service in SERVICES}
    report["processes"] = processes()
    note("kill all")
    kill(*SERVICES)
    wait_for("the station to answer again", 40, snapshot)
    note("board B")
    control("b", "plug")
    wait_for("board B to be under way", 40, lambda: nest("B").get("step_index", 0) >= 1)
    kill("station")
    wait_for("board B to pass", 60, lambda: passed("B"))
    wait_for("the second upload", 40, lambda: acknowledged(2))
    report["after"] = {service: show(service) for service in SERVICES}


def production() -> None:
    """Each nest's board; those without a TPM under orders that the page's planner signs for them as for the first."""
    order = next(block for block in blocks("production") if "WO-1.json <<ORDER" in block)
    for number, sku in enumerate(WITHOUT_TPM, 2):
        own = order.replace('"sku": "gw-200"', f'"sku": "{sku}"').replace("gw-200.toml", f"{sku}.toml")
        run(own.replace("WO-1", f"WO-{number}"))
    note("boards")
    for place in "abc":
        control(place, "plug")
    wait_for("the software TPM's verdict", 40, lambda: nest("A").get("outcome") or None)
    report["refused"] = nest("A")
    wait_for("board B to pass", 40, lambda: passed("B"))
    wait_for("board C to pass", 40, lambda: passed("C"))
    wait_for("the uploads", 40, lambda: acknowledged(2))
    report["services"] = {service: show(service) for service in SERVICES}
    report["verified"] = json.loads(said("/opt/hallmark/bin/hallmark", "config", "verify", "--json"))
    report["trust"] = json.loads(said("/opt/hallmark/bin/hallmark", "trust", "list", "--json"))
    report["orders"] = json.loads(said("/opt/hallmark/bin/hallmark", "orders", "list", "--json"))
    report["reconciled"] = json.loads(said("/opt/hallmark/bin/hallmark", "orders", "reconcile", "--json"))
    note("restart")
    run("systemctl restart hallmark-signer hallmark-station hallmark-uploader\nhallmark config verify")
    wait_for("the station to answer again", 40, snapshot)


LINES = {"bench": bench, "production": production}


def whole(line: str) -> None:
    follow(line)
    LINES[line]()
    report["enrollments"] = status.ask(BENCH / "dps.sock", "/emulator/enrollments")
    run("hallmark units export --all --out /out/units\nhallmark status\nhallmark ca status\nhallmark outbox")
    run("cp ~/root.pem /out/ || cp /var/lib/hallmark/signer/bench-root/root.pem /out/")
    run("systemctl stop hallmark.target 'hallmark-*'")
    report["stopped"] = {service: show(service) for service in SERVICES}


def main() -> None:
    (OUT / "booted").touch()
    try:
        whole(sys.argv[1])
    except Exception:
        report["problem"] = traceback.format_exc()
        report["snapshot"] = snapshot()
        report["logs"] = {str(path): path.read_text()[-2000:] for path in BENCH.glob("*.log")}
    finally:
        report["journal"] = said("journalctl", "-o", "short", "--no-pager")[-200_000:]
        (OUT / "report.json").write_text(json.dumps(report, indent=1, default=str))


if __name__ == "__main__":
    main()
