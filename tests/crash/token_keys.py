"""Which keys for copies of secrets a token holds, told by the PKCS#11 module itself, in a process of its own.

    token_keys.py MODULE TOKEN PIN-FILE

prints a JSON list of labels of secret keys. Nothing of the station comes in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def labels(module: Path, token: str, pin: Path, environment: Mapping[str, str]) -> list[str]:
    """The labels of the token's secret keys, sorted; asked by a new process, which finds the token as it is now."""
    done = subprocess.run(
        [sys.executable, "-I", __file__, str(module), token, str(pin)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


def main() -> int:
    import pkcs11

    module, token, pin = sys.argv[1:]
    slot = pkcs11.lib(module).get_token(token_label=token)
    with slot.open(user_pin=Path(pin).read_text().strip()) as session:
        keys = session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY})
        print(json.dumps(sorted(key[pkcs11.Attribute.LABEL] for key in keys)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
