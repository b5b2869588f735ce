"""The ledger's tables, as numbered migrations, forward only: a script that has landed is never changed."""

from __future__ import annotations

from typing import Final

import apsw

from hal.errors import StoreUnavailable
from station.signer.trails import TRAILS

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE issuers (
        sha256 BLOB PRIMARY KEY CHECK (length(sha256) = 32),  -- of the issuing CA's certificate
        chain BLOB NOT NULL                                   -- PEM, issuing CA first, up to but without the root
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE certificates (
        id INTEGER PRIMARY KEY,
        unit TEXT NOT NULL UNIQUE,
        registration_id TEXT NOT NULL UNIQUE,
        spki_sha256 BLOB NOT NULL UNIQUE CHECK (length(spki_sha256) = 32),
        serial BLOB NOT NULL UNIQUE CHECK (length(serial) BETWEEN 1 AND 20),
        profile TEXT NOT NULL,
        issuer BLOB NOT NULL REFERENCES issuers (sha256),
        csr BLOB NOT NULL,
        tbs BLOB NOT NULL,
        intended_at INTEGER NOT NULL,                         -- Unix seconds
        certificate BLOB,                                     -- DER; NULL until signed
        signed_at INTEGER
    ) STRICT;
    CREATE INDEX pending ON certificates (id) WHERE certificate IS NULL;
    """,
    """
    CREATE TABLE ca_keys (                                    -- labels of the CA's keys in the token
        label TEXT PRIMARY KEY,
        made_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE generations (                                -- one for each certificate of the issuing CA
        number INTEGER PRIMARY KEY,
        label TEXT NOT NULL REFERENCES ca_keys (label),
        issuer BLOB NOT NULL UNIQUE REFERENCES issuers (sha256),
        root BLOB NOT NULL,                                   -- PEM
        installed_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE activations (
        id INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL REFERENCES generations (number),
        active_from INTEGER NOT NULL,                         -- Unix seconds; the latest that has come issues
        decided_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE acts (                                       -- what people did to the CA
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        by TEXT NOT NULL,
        what TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE releases (
        serial INTEGER PRIMARY KEY NOT NULL,
        digest BLOB NOT NULL CHECK (length(digest) = 32)      -- SHA-256 of set.json
    ) STRICT;
    CREATE TABLE origins (                                    -- what each certificate was asked for with
        id INTEGER PRIMARY KEY NOT NULL REFERENCES certificates (id),
        configuration BLOB CHECK (configuration IS NULL OR length(configuration) = 32)  -- SHA-256 of set.json
    ) STRICT;
    """,
    """
    CREATE TABLE device_keys (
        unit TEXT NOT NULL,
        purpose TEXT NOT NULL CHECK (purpose IN ('symmetric', 'private-key')),
        registration_id TEXT NOT NULL,
        origin TEXT NOT NULL,                                 -- 'random', 'group LABEL' or 'made KEY-TYPE'
        print BLOB NOT NULL UNIQUE CHECK (length(print) = 32),-- by which the key is known again, without being told
        kept BLOB,                                            -- the key, wrapped under the token's; NULL: forgotten
        verifier BLOB,                                        -- what checks a proof, wrapped
        upload BLOB NOT NULL,                                 -- sealed to the uploader; empty for what is not uploaded
        spki BLOB NOT NULL,                                   -- of a private key, DER
        made_at INTEGER NOT NULL,                             -- Unix seconds
        PRIMARY KEY (unit, purpose),
        UNIQUE (registration_id, purpose)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX device_keys_kept ON device_keys (made_at) WHERE kept IS NOT NULL;
    """,
    TRAILS,
    """
    -- Whether a key may go only to a transport key that the unit's own key vouches for.
    ALTER TABLE device_keys ADD COLUMN bound INTEGER NOT NULL DEFAULT 0 CHECK (bound IN (0, 1));
    """,
    """
    CREATE TABLE attestations (                               -- what was proven of a certificate's key
        id INTEGER PRIMARY KEY NOT NULL REFERENCES certificates (id),
        transcript BLOB NOT NULL                              -- JSON of station.attestation.Transcript
    ) STRICT;
    """,
    """
    CREATE TABLE clock (                                      -- station.signer.clock.Mark
        id INTEGER PRIMARY KEY CHECK (id = 1),
        mark INTEGER NOT NULL,
        boot TEXT NOT NULL,
        anchor INTEGER NOT NULL,
        uptime INTEGER NOT NULL,
        corrected INTEGER NOT NULL CHECK (corrected IN (0, 1))
    ) STRICT;
    """,
    """
    CREATE TABLE revocations (
        entry INTEGER PRIMARY KEY REFERENCES certificates (id),
        revoked_at INTEGER NOT NULL,
        reason TEXT NOT NULL,
        not_after INTEGER NOT NULL                            -- the certificate's end
    ) STRICT;
    CREATE TABLE crls (
        id INTEGER PRIMARY KEY,
        scope BLOB NOT NULL CHECK (length(scope) = 32),       -- SHA-256 over the CA's name and key
        number INTEGER NOT NULL,                              -- cRLNumber
        issuer BLOB NOT NULL REFERENCES issuers (sha256),
        this_update INTEGER NOT NULL,
        next_update INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        tbs BLOB NOT NULL,
        crl BLOB,                                             -- DER; NULL until signed
        UNIQUE (scope, number)
    ) STRICT;
    """,
    """
    CREATE TABLE work_orders (
        id TEXT PRIMARY KEY NOT NULL,
        data BLOB NOT NULL,                                   -- as it was signed
        signature BLOB NOT NULL,
        first_seen INTEGER NOT NULL,
        intended INTEGER NOT NULL DEFAULT 0,                  -- intents for it, signed or not
        given_back INTEGER NOT NULL DEFAULT 0 CHECK (given_back <= intended)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE origins ADD COLUMN work_order TEXT REFERENCES work_orders (id);
    CREATE INDEX origins_order ON origins (work_order) WHERE work_order IS NOT NULL;
    CREATE TABLE scraps (
        id INTEGER PRIMARY KEY NOT NULL REFERENCES certificates (id),
        at INTEGER NOT NULL,
        by TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    """,
)
"""Migration n (from 1) brings a ledger of version n - 1 to version n. PRAGMA user_version holds the version."""


def migrate(db: apsw.Connection) -> None:
    """Brings the ledger to the newest version, one transaction for each. StoreUnavailable when it is a later one's."""
    version: int = db.execute("PRAGMA user_version").get
    if version > len(MIGRATIONS):
        message = f"the ledger is of version {version}; this release knows {len(MIGRATIONS)}"
        raise StoreUnavailable(message, hint="Install the release that wrote it, or a later one.")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        with db:
            db.execute(script)
            db.execute(f"PRAGMA user_version = {number}")
