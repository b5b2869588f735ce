"""The steps that a recipe can name, one file each. Each is a tuple of actions; the runner does the rest."""

from __future__ import annotations

from typing import Final

from station.action import Step
from station.steps import (
    certificate,
    configure,
    enroll,
    final_check,
    flash,
    key_identity,
    symmetric_key,
    tpm_identity,
    tpm_ownership,
)

STEPS: Final[dict[str, Step]] = {
    step.use: step
    for step in (
        flash.STEP,
        tpm_identity.STEP,
        key_identity.STEP,
        tpm_ownership.STEP,
        symmetric_key.STEP,
        certificate.STEP,
        configure.STEP,
        final_check.STEP,
        enroll.STEP,
    )
}
"""By the name in a recipe's `use`."""
