"""Keys that were sealed to the uploader, opened at the moment of their upload: into memory, and nowhere else.

The private key is a credential of this process alone, read anew for each batch. Nothing opened is logged or reported.
"""

from __future__ import annotations

from dataclasses import replace

from hal.errors import ConfigError, Rejected, Unauthorized
from hal.interfaces import Credentials
from hal.types import Enrollment, SealedSymmetricAttestation
from station.sealing import UPLOAD_CREDENTIAL, open_upload, read_upload_key


class Opener:
    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def opened(self, enrollment: Enrollment) -> Enrollment:
        """With its keys, where it has sealed ones. Rejected when they were sealed to another key.

        Unauthorized, which is tried again, while the private key is missing or can't be read.
        """
        attestation = enrollment.attestation
        if not isinstance(attestation, SealedSymmetricAttestation):
            return enrollment
        try:
            key = read_upload_key(self._credentials.secret(UPLOAD_CREDENTIAL))
        except ConfigError as error:
            raise Unauthorized(f"keys can't be opened for the upload: {error}", hint=error.hint) from error
        keys = open_upload(key, enrollment.registration_id, attestation.sealed)
        if keys is None:
            raise Rejected(
                f"the key of {enrollment.registration_id} does not open with the uploader's private key",
                hint="Put the upload key back that belongs to [device_keys] upload_key, then `hallmark outbox retry`.",
            )
        return replace(enrollment, attestation=keys)
