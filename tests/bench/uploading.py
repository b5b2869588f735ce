"""Enrollments a second out of a full outbox, against bare POSTs of the same bulk bodies to the same service."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa

from drivers.azure_dps import messages, sas
from drivers.emulated.bench.layout import POLICY
from hal.secret import Secret
from hal.types import Enrollment, TpmAttestation
from station.enrollment import to_json
from station.store import Store
from tests import store_parts
from tests.bench.rig import Rig, rig
from tests.bench.table import Row


def _ek() -> bytes:
    """TPM2B_PUBLIC of an RSA-2048 EK by the TCG template L-1 (EK Credential Profile, B.3.3)."""
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n.to_bytes(256, "big")
    policy = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
    area = (
        bytes.fromhex("0001000b000300b20020")
        + policy
        + bytes.fromhex("00060080004300100800000000000100")
        + modulus
    )
    return len(area).to_bytes(2, "big") + area


def _enrollment(prefix: str, number: int, ek: bytes) -> Enrollment:
    name = f"{prefix}-{number}"
    return Enrollment(name, name, TpmAttestation(ek), {"sku": "gw-200", "station": "bench"})


def _fill(made: Rig, count: int, ek: bytes) -> None:
    """So many units that have passed while there was no network."""
    path = made.paths.database
    path.parent.mkdir(parents=True, exist_ok=True)
    with Store.open(path) as store:
        for number in range(count):
            visit = store_parts.plug(store)
            store_parts.join(store, visit, number)
            content = to_json(_enrollment("unit", number, ek))
            store.finish(visit, "enroll", "queue", {}, content, ["dps"], b"{}")


def _raw(made: Rig, count: int, ek: bytes) -> float:
    """Bulk requests one after the other over one connection, signed as they have to be."""
    host = urlsplit(made.line.cloud.endpoint).netloc
    key = Secret(made.layout.dps_key_file.read_bytes())
    connection = http.client.HTTPConnection(host)
    size = messages.BULK_LIMIT
    bodies = [
        messages.encode(
            {
                "mode": "create",
                "enrollments": [
                    messages.individual(_enrollment("raw", number, ek))
                    for number in range(first, first + size)
                ],
            }
        )
        for first in range(0, count, size)
    ]
    began = time.monotonic()
    for body in bodies:
        headers = {
            "Authorization": sas.token(host, POLICY, key, time.time()),
            "Content-Type": "application/json; charset=utf-8",
        }
        connection.request("POST", f"/enrollments?api-version={messages.API_VERSION}", body, headers)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        assert answer.status == 200, said
        assert said["isSuccessful"], said
    took = time.monotonic() - began
    connection.close()
    return count / took


def run(count: int) -> list[Row]:
    ek = _ek()
    with rig(1) as made:
        _fill(made, count, ek)
        raw = _raw(made, count, ek)
        made.start("run")
        made.wait_warm()
        made.start("uploader")
        before = made.cpu()
        first, began = 0, time.monotonic()
        while (done := made.client.snapshot().outbox.acknowledged) < count:
            if not first and done:
                first, began = done, time.monotonic()
            time.sleep(0.05)
        rate = (count - first) / (time.monotonic() - began)
        after = made.cpu()
    spent = sum(after[word] - before[word] for word in after) / count * 1000
    return [
        Row(
            "enrollments uploaded, batches of 10", rate, "/s", raw, "the same bodies, bare HTTP", is_rate=True
        ),
        Row("station's and uploader's CPU an enrollment", spent, "ms"),
    ]
