"""The store's schema as numbered migrations: forward only, each in one transaction, none ever edited once released.

Times are integer milliseconds since 1970 (UTC). Facts are MessagePack. Nothing here holds a secret in clear: `sealed`
is CMS to the escrow officers, `wrapped` is under the token's key. Queries don't belong here.
"""

from __future__ import annotations

from typing import Final

import apsw

from hal.errors import StationError
from station.audit.record import leaf_of

APPLICATION_ID: Final = 0x48414C4D
"""PRAGMA application_id: "HALM", so that another program's database is never taken for ours."""

V1: Final = """
CREATE TABLE work_orders (
    id        TEXT PRIMARY KEY NOT NULL,
    sku       TEXT NOT NULL,
    quantity  INTEGER NOT NULL CHECK (quantity > 0),
    position  INTEGER NOT NULL,                               -- orders of one SKU are used up in this order
    active    INTEGER NOT NULL CHECK (active IN (0, 1)),      -- 0: no longer in station.toml
    attempts  INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    passed    INTEGER NOT NULL DEFAULT 0 CHECK (passed >= 0)
) STRICT;
CREATE INDEX work_orders_sku ON work_orders (sku, position) WHERE active = 1;

CREATE TABLE units (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    unit             TEXT NOT NULL UNIQUE,
    registration_id  TEXT NOT NULL UNIQUE,
    sku              TEXT NOT NULL,
    created          INTEGER NOT NULL,
    passed           INTEGER,                                 -- when it first passed
    quarantine       TEXT,                                    -- why it waits for a person, or NULL
    work_order       TEXT REFERENCES work_orders (id)         -- the order that it was counted against, once
) STRICT;

CREATE TABLE visits (
    visit          TEXT PRIMARY KEY NOT NULL,
    nest           TEXT NOT NULL,
    boot           TEXT NOT NULL,
    number         INTEGER NOT NULL,
    place          TEXT NOT NULL,
    sku            TEXT NOT NULL,
    recipe_pass    TEXT NOT NULL,
    recipe_digest  BLOB NOT NULL,
    unit           TEXT REFERENCES units (unit),
    work_order     TEXT REFERENCES work_orders (id),
    opened         INTEGER NOT NULL,
    closed         INTEGER,
    outcome        TEXT CHECK (outcome IN ('PASS', 'FAIL', 'ERROR', 'REFUSED', 'ABORTED')),
    step           TEXT,
    action         TEXT,
    code           TEXT,
    message        TEXT,
    hint           TEXT,
    UNIQUE (nest, boot, number),
    CHECK ((closed IS NULL) = (outcome IS NULL)),
    CHECK (outcome IS NOT 'PASS' OR unit IS NOT NULL)
) STRICT;
CREATE INDEX visits_unit ON visits (unit, opened) WHERE unit IS NOT NULL;
-- One board is in one nest at a time, and a nest holds one board.
CREATE UNIQUE INDEX visits_open_unit ON visits (unit) WHERE closed IS NULL AND unit IS NOT NULL;
CREATE UNIQUE INDEX visits_open_nest ON visits (nest) WHERE closed IS NULL;
CREATE INDEX visits_open_order ON visits (work_order) WHERE closed IS NULL;

CREATE TABLE identifiers (
    kind      TEXT NOT NULL,
    value     TEXT NOT NULL,
    unit      TEXT NOT NULL REFERENCES units (unit),
    strong    INTEGER NOT NULL CHECK (strong IN (0, 1)),      -- 0: the board only claims it
    visit     TEXT NOT NULL REFERENCES visits (visit),
    recorded  INTEGER NOT NULL,
    UNIQUE (kind, value)
) STRICT;
CREATE INDEX identifiers_unit ON identifiers (unit, kind);
CREATE INDEX identifiers_value ON identifiers (value);
CREATE UNIQUE INDEX identifiers_strong ON identifiers (unit, kind) WHERE strong = 1;

CREATE TABLE actions (
    id      INTEGER PRIMARY KEY,
    visit   TEXT NOT NULL REFERENCES visits (visit),
    unit    TEXT REFERENCES units (unit),
    step    TEXT NOT NULL,
    action  TEXT NOT NULL,
    begun   INTEGER,                                          -- the intent; NULL when probing found it done
    done    INTEGER,
    found   INTEGER NOT NULL DEFAULT 0 CHECK (found IN (0, 1)),
    facts   BLOB,
    UNIQUE (visit, step, action),
    CHECK (begun IS NOT NULL OR done IS NOT NULL),
    CHECK ((done IS NULL) = (facts IS NULL))
) STRICT;
CREATE INDEX actions_unit ON actions (unit, step, action, id) WHERE unit IS NOT NULL;

CREATE TABLE certificates (
    unit       TEXT PRIMARY KEY NOT NULL REFERENCES units (unit),
    visit      TEXT NOT NULL REFERENCES visits (visit),
    profile    TEXT NOT NULL,
    key        BLOB NOT NULL UNIQUE CHECK (length(key) = 32), -- SHA-256 of the SubjectPublicKeyInfo
    issuer     BLOB NOT NULL,                                 -- DER Name
    serial     TEXT NOT NULL,                                 -- hex
    not_after  INTEGER NOT NULL,
    chain      BLOB NOT NULL,                                 -- MessagePack list of DER, leaf first
    recorded   INTEGER NOT NULL,
    UNIQUE (issuer, serial)
) STRICT;

CREATE TABLE escrows (
    ek_name      BLOB NOT NULL,
    generation   INTEGER NOT NULL CHECK (generation > 0),
    unit         TEXT NOT NULL REFERENCES units (unit),
    visit        TEXT NOT NULL REFERENCES visits (visit),
    hierarchies  BLOB NOT NULL,                               -- MessagePack list of names
    sealed       BLOB NOT NULL,
    recorded     INTEGER NOT NULL,
    PRIMARY KEY (ek_name, generation)
) STRICT;
CREATE INDEX escrows_unit ON escrows (unit);
CREATE TRIGGER escrows_keep_rows BEFORE DELETE ON escrows
    BEGIN SELECT raise(ABORT, 'escrows are append-only'); END;
CREATE TRIGGER escrows_keep_content BEFORE UPDATE ON escrows
    BEGIN SELECT raise(ABORT, 'escrows are append-only'); END;

CREATE TABLE resume_copies (
    ek_name     BLOB NOT NULL,
    generation  INTEGER NOT NULL,
    wrapped     BLOB NOT NULL,
    PRIMARY KEY (ek_name, generation),
    FOREIGN KEY (ek_name, generation) REFERENCES escrows (ek_name, generation)
) STRICT;

CREATE TABLE outbox (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    kind          TEXT NOT NULL CHECK (kind IN ('enrollment', 'archive')),
    unit          TEXT NOT NULL REFERENCES units (unit),
    sink          TEXT NOT NULL,
    digest        BLOB NOT NULL CHECK (length(digest) = 32),
    content       BLOB NOT NULL,
    queued        INTEGER NOT NULL,
    state         TEXT NOT NULL DEFAULT 'queued'
                  CHECK (state IN ('queued', 'parked', 'acknowledged', 'superseded')),
    tries         INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
    closed        INTEGER,                                    -- when it left 'queued'
    code          TEXT,                                       -- the last problem
    message       TEXT,
    hint          TEXT,
    etag          TEXT,
    existed       INTEGER NOT NULL DEFAULT 0 CHECK (existed IN (0, 1)),
    sent          BLOB,                                       -- as the sink received it
    CHECK ((state = 'queued') = (closed IS NULL))
) STRICT;
-- Least tried first: items that keep failing can't starve the rest of the queue.
CREATE INDEX outbox_due ON outbox (sink, tries, seq) WHERE state = 'queued';
CREATE INDEX outbox_oldest ON outbox (kind, queued) WHERE state = 'queued';
CREATE INDEX outbox_unit ON outbox (unit, kind, sink, seq);
-- One enrollment in effect for each unit and sink: at most one is on its way.
CREATE UNIQUE INDEX outbox_one_queued ON outbox (unit, kind, sink) WHERE state = 'queued';
CREATE INDEX outbox_parked ON outbox (seq) WHERE state = 'parked';
CREATE INDEX outbox_superseded ON outbox (seq) WHERE state = 'superseded';
CREATE TRIGGER outbox_keep_content BEFORE UPDATE OF kind, unit, sink, digest, content ON outbox
    BEGIN SELECT raise(ABORT, 'what is queued does not change'); END;

-- count(*) over a million rows takes most of a second; these are kept by triggers.
CREATE TABLE outbox_depth (
    kind    TEXT NOT NULL,
    sink    TEXT NOT NULL,
    state   TEXT NOT NULL,
    rows    INTEGER NOT NULL DEFAULT 0 CHECK (rows >= 0),
    latest  INTEGER,
    PRIMARY KEY (kind, sink, state)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER outbox_depth_in AFTER INSERT ON outbox BEGIN
    INSERT INTO outbox_depth (kind, sink, state, rows, latest) VALUES (new.kind, new.sink, new.state, 1, new.queued)
        ON CONFLICT DO UPDATE SET rows = rows + 1, latest = excluded.latest;
END;
CREATE TRIGGER outbox_depth_move AFTER UPDATE OF state ON outbox WHEN old.state <> new.state BEGIN
    UPDATE outbox_depth SET rows = rows - 1 WHERE (kind, sink, state) = (old.kind, old.sink, old.state);
    INSERT INTO outbox_depth (kind, sink, state, rows, latest)
        VALUES (new.kind, new.sink, new.state, 1, coalesce(new.closed, new.queued))
        ON CONFLICT DO UPDATE SET rows = rows + 1, latest = excluded.latest;
END;
CREATE TRIGGER outbox_depth_out AFTER DELETE ON outbox BEGIN
    UPDATE outbox_depth SET rows = rows - 1 WHERE (kind, sink, state) = (old.kind, old.sink, old.state);
END;

CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    unit    TEXT,
    visit   TEXT,
    nest    TEXT,
    step    TEXT,
    fields  TEXT NOT NULL                                     -- JSON object, sorted keys
) STRICT;
CREATE INDEX audit_unit ON audit (unit, seq) WHERE unit IS NOT NULL;
CREATE TRIGGER audit_keep_rows BEFORE DELETE ON audit
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_keep_content BEFORE UPDATE ON audit
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;
"""

V2: Final = """
CREATE TABLE decisions (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    kind      TEXT NOT NULL,
    subject   TEXT NOT NULL,
    unit      TEXT REFERENCES units (unit),                   -- the unit that waits for it, where there is one
    question  TEXT NOT NULL,
    choices   BLOB NOT NULL,                                  -- MessagePack list of words
    details   BLOB NOT NULL,                                  -- MessagePack map of texts, for the room of its kind
    asked     INTEGER NOT NULL,
    answered  INTEGER,
    answer    TEXT,
    reason    TEXT,
    by        TEXT,
    used      INTEGER,                                        -- when what it permits was done; once
    CHECK ((answered IS NULL) = (answer IS NULL) AND (answered IS NULL) = (reason IS NULL)),
    CHECK (used IS NULL OR answered IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX decisions_open ON decisions (kind, subject) WHERE answered IS NULL;
CREATE INDEX decisions_subject ON decisions (kind, subject, id);
CREATE INDEX decisions_unit ON decisions (unit, id) WHERE unit IS NOT NULL;
CREATE TRIGGER decisions_keep_rows BEFORE DELETE ON decisions
    BEGIN SELECT raise(ABORT, 'decisions are never deleted'); END;
CREATE TRIGGER decisions_keep_answers BEFORE UPDATE ON decisions
    WHEN old.used IS NOT NULL OR (old.answered IS NOT NULL AND new.used IS NULL)
    BEGIN SELECT raise(ABORT, 'an answer does not change'); END;

-- A claim (serial, MAC) that a person has allowed a unit although it is on record for another one.
CREATE TABLE allowed_claims (
    kind      TEXT NOT NULL,
    value     TEXT NOT NULL,
    unit      TEXT NOT NULL REFERENCES units (unit),
    decision  INTEGER NOT NULL REFERENCES decisions (id),
    PRIMARY KEY (kind, value, unit)
) STRICT;
ALTER TABLE units ADD COLUMN retired TEXT;                    -- why it is out for good, or NULL
"""


KEYS_SEEN: Final = """
CREATE TABLE keys_seen (
    key       BLOB PRIMARY KEY NOT NULL CHECK (length(key) = 32), -- SHA-256 of the SubjectPublicKeyInfo
    unit      TEXT NOT NULL REFERENCES units (unit),
    what      TEXT NOT NULL,
    visit     TEXT NOT NULL REFERENCES visits (visit),
    recorded  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_seen_unit ON keys_seen (unit);
CREATE TRIGGER keys_seen_keep_rows BEFORE DELETE ON keys_seen
    BEGIN SELECT raise(ABORT, 'keys that were seen stay seen'); END;
CREATE TRIGGER keys_seen_keep_content BEFORE UPDATE ON keys_seen
    BEGIN SELECT raise(ABORT, 'keys that were seen stay seen'); END;
-- What was there before: boards known by their key, then certificates. A board's identity may be its certificate's key.
INSERT INTO keys_seen (key, unit, what, visit, recorded)
    SELECT unhex(value), unit, 'identity', visit, recorded FROM identifiers WHERE kind = 'key' AND strong = 1;
INSERT INTO keys_seen (key, unit, what, visit, recorded)
    SELECT key, unit, 'certificate', visit, recorded FROM certificates WHERE true ON CONFLICT (key) DO NOTHING;
"""

AUDIT_TREE: Final = """
ALTER TABLE audit ADD COLUMN leaf BLOB CHECK (length(leaf) = 32);  -- SHA-256(0x00 || canonical record), RFC 6962
DROP TRIGGER audit_keep_content;
UPDATE audit SET leaf = audit_leaf(seq, at, kind, unit, visit, nest, step, fields);
CREATE TRIGGER audit_keep_content BEFORE UPDATE ON audit
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;
-- What happened in a visit before its board was known belongs to the unit as well.
CREATE INDEX audit_visit ON audit (visit, seq) WHERE unit IS NULL AND visit IS NOT NULL;
CREATE TRIGGER audit_has_leaf BEFORE INSERT ON audit WHEN new.leaf IS NULL
    BEGIN SELECT raise(ABORT, 'an audit record without its leaf hash'); END;

-- Hashes of complete subtrees, each eighth level only: what is between is made from the 256 below it when asked for.
CREATE TABLE audit_tiles (
    level  INTEGER NOT NULL CHECK (level > 0 AND level % 8 = 0),
    place  INTEGER NOT NULL,
    hash   BLOB NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, place)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER audit_tiles_keep_rows BEFORE DELETE ON audit_tiles
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_tiles_keep_content BEFORE UPDATE ON audit_tiles
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;

-- One store, one trail at a time: another store, or one begun anew by a person, is another trail by its origin.
CREATE TABLE audit_trails (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT NOT NULL UNIQUE,
    begun   INTEGER NOT NULL,
    origin  TEXT UNIQUE                                       -- fixed when its first checkpoint is asked for
) STRICT;
INSERT INTO audit_trails (id, begun) VALUES (lower(hex(randomblob(8))), unixepoch() * 1000);
CREATE TRIGGER audit_trails_keep_rows BEFORE DELETE ON audit_trails
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_trails_keep_content BEFORE UPDATE ON audit_trails
    WHEN old.origin IS NOT NULL OR (new.number, new.id, new.begun) <> (old.number, old.id, old.begun)
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;

CREATE TABLE audit_checkpoints (
    trail      INTEGER NOT NULL REFERENCES audit_trails (number),
    size       INTEGER NOT NULL CHECK (size > 0),
    root       BLOB NOT NULL CHECK (length(root) = 32),
    note       BLOB NOT NULL,                                 -- C2SP signed note
    key        BLOB NOT NULL,                                 -- DER SubjectPublicKeyInfo that it is signed with
    signed_at  INTEGER NOT NULL,
    PRIMARY KEY (trail, size)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER audit_checkpoints_keep_rows BEFORE DELETE ON audit_checkpoints
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_checkpoints_keep_content BEFORE UPDATE ON audit_checkpoints
    BEGIN SELECT raise(ABORT, 'the audit trail is append-only'); END;
"""

RELEASES: Final = """
CREATE TABLE releases (
    serial  INTEGER PRIMARY KEY NOT NULL,
    digest  BLOB NOT NULL CHECK (length(digest) = 32),        -- SHA-256 of set.json
    taken   INTEGER NOT NULL
) STRICT;
-- The signed configuration set that the visit was made with; NULL on a bench.
ALTER TABLE visits ADD COLUMN configuration BLOB CHECK (configuration IS NULL OR length(configuration) = 32);
"""

WRAP_KEYS: Final = """
-- Token keys that wrap copies for resume, one for each work order or day. `retired`: never used again from then on.
CREATE TABLE wrap_keys (
    key        TEXT PRIMARY KEY NOT NULL,
    scope      TEXT NOT NULL,
    made       INTEGER NOT NULL,
    retired    INTEGER,
    destroyed  INTEGER,
    CHECK (destroyed IS NULL OR retired IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX wrap_keys_current ON wrap_keys (scope) WHERE retired IS NULL;
CREATE INDEX wrap_keys_left ON wrap_keys (made) WHERE destroyed IS NULL;

CREATE TABLE resume_keys (
    ek_name     BLOB NOT NULL,
    generation  INTEGER NOT NULL,
    key         TEXT NOT NULL REFERENCES wrap_keys (key),
    PRIMARY KEY (ek_name, generation),
    FOREIGN KEY (ek_name, generation) REFERENCES resume_copies (ek_name, generation) ON DELETE CASCADE
) STRICT;
CREATE INDEX resume_keys_key ON resume_keys (key);

-- Where else an escrow record is, durably: the station's own row is not among them.
CREATE TABLE escrow_copies (
    ek_name     BLOB NOT NULL,
    generation  INTEGER NOT NULL,
    place       TEXT NOT NULL,
    recorded    INTEGER NOT NULL,
    PRIMARY KEY (ek_name, generation, place),
    FOREIGN KEY (ek_name, generation) REFERENCES escrows (ek_name, generation)
) STRICT;
"""

TRUST: Final = """
CREATE TABLE ek_lists (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    lot       TEXT NOT NULL,
    vendor    TEXT NOT NULL,
    created   INTEGER NOT NULL,                               -- as whoever signed it says
    entries   INTEGER NOT NULL CHECK (entries >= 0),
    sha256    BLOB NOT NULL CHECK (length(sha256) = 32),      -- of the signed file
    signer    TEXT NOT NULL,
    state     TEXT NOT NULL CHECK (state IN ('importing', 'active', 'superseded')),
    imported  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX ek_lists_lot ON ek_lists (lot) WHERE state = 'active';
-- By Name first: an EK is looked up at each visit, a whole list is read once a shift.
CREATE TABLE ek_list_entries (
    ek_name  BLOB NOT NULL,
    list     INTEGER NOT NULL REFERENCES ek_lists (id),
    PRIMARY KEY (ek_name, list)
) STRICT, WITHOUT ROWID;

CREATE TABLE ek_verdicts (
    visit     TEXT NOT NULL REFERENCES visits (visit),
    ek_name   BLOB NOT NULL,
    recorded  INTEGER NOT NULL,
    verdict   TEXT NOT NULL,                                  -- JSON object
    PRIMARY KEY (visit, ek_name)
) STRICT;

-- Outlives the bundle's files: an older one is recognised although the newer one was removed.
CREATE TABLE trust_bundles (
    serial     INTEGER PRIMARY KEY NOT NULL CHECK (serial > 0),
    sha256     BLOB NOT NULL CHECK (length(sha256) = 32),
    signer     TEXT NOT NULL,
    installed  INTEGER NOT NULL
) STRICT;
"""

STOCK: Final = """
CREATE TABLE stock_lots (
    lot       TEXT PRIMARY KEY NOT NULL,
    kind      TEXT NOT NULL CHECK (kind IN ('keys', 'certificates', 'preloaded')),
    origin    TEXT NOT NULL,
    sha256    BLOB NOT NULL CHECK (length(sha256) = 32),      -- of the signed manifest
    signer    TEXT,                                           -- NULL: not signed, in bench mode
    entries   INTEGER NOT NULL,
    imported  INTEGER NOT NULL
) STRICT;

CREATE TABLE stock (
    key          BLOB PRIMARY KEY NOT NULL CHECK (length(key) = 32), -- SHA-256 of the SubjectPublicKeyInfo
    lot          TEXT NOT NULL REFERENCES stock_lots (lot),
    certificate  BLOB UNIQUE CHECK (length(certificate) = 32),       -- SHA-256 of the leaf, where it is known
    issuer       BLOB,
    serial       TEXT,
    common_name  TEXT UNIQUE,
    not_after    INTEGER,
    chain        BLOB,                                        -- MessagePack list of DER, leaf first
    wrapped      BLOB,                                        -- the private key, under the token's; gone once settled
    unit         TEXT UNIQUE REFERENCES units (unit),         -- whose it is, for good
    visit        TEXT REFERENCES visits (visit),
    drawn        INTEGER,
    settled      INTEGER,                                     -- the unit passed with it
    UNIQUE (issuer, serial),
    CHECK ((unit IS NULL) = (drawn IS NULL)),
    CHECK (settled IS NULL OR unit IS NOT NULL)
) STRICT;
CREATE INDEX stock_free ON stock (lot, not_after) WHERE unit IS NULL;
CREATE INDEX stock_settled ON stock (lot) WHERE settled IS NOT NULL;
CREATE TRIGGER stock_keep_rows BEFORE DELETE ON stock
    BEGIN SELECT raise(ABORT, 'stock is given out, never taken back'); END;
CREATE TRIGGER stock_keep_unit BEFORE UPDATE OF key, lot, certificate, issuer, serial, chain, unit ON stock
    WHEN old.unit IS NOT NULL AND (new.unit IS NOT old.unit OR new.key <> old.key OR new.chain IS NOT old.chain)
    BEGIN SELECT raise(ABORT, 'what a unit was given stays its own'); END;
"""

ATTESTATIONS: Final = """
CREATE TABLE attestations (
    unit        TEXT PRIMARY KEY NOT NULL REFERENCES units (unit),
    visit       TEXT NOT NULL REFERENCES visits (visit),
    recorded    INTEGER NOT NULL,
    transcript  BLOB NOT NULL                                 -- JSON of station.attestation.Transcript
) STRICT;
"""
"""What was proven of a unit's TPM keys: the fullest transcript of its last visit that proved any."""

SIGNED_ORDERS: Final = """
CREATE TABLE signed_orders (
    id         TEXT PRIMARY KEY NOT NULL REFERENCES work_orders (id),
    data       BLOB NOT NULL,                                 -- as it was signed
    signature  BLOB NOT NULL,
    imported   INTEGER NOT NULL,
    by         TEXT NOT NULL,
    closed     INTEGER,                                       -- ended early
    reason     TEXT,
    CHECK ((closed IS NULL) = (reason IS NULL))
) STRICT;
CREATE TRIGGER signed_orders_keep_rows BEFORE DELETE ON signed_orders
    BEGIN SELECT raise(ABORT, 'work orders are never deleted'); END;
CREATE TRIGGER signed_orders_keep_content BEFORE UPDATE OF id, data, signature ON signed_orders
    BEGIN SELECT raise(ABORT, 'a signed work order does not change'); END;
ALTER TABLE work_orders ADD COLUMN given_back INTEGER NOT NULL DEFAULT 0 CHECK (given_back >= 0);

-- What the signer was asked for, one row for each unit: asked is durable before the request, signed with its answer.
CREATE TABLE signatures (
    unit        TEXT PRIMARY KEY NOT NULL REFERENCES units (unit),
    work_order  TEXT REFERENCES work_orders (id),             -- NULL: without an order
    asked       INTEGER NOT NULL,
    signed      INTEGER
) STRICT;
CREATE INDEX signatures_order ON signatures (work_order, signed);

CREATE TABLE scraps (
    unit        TEXT PRIMARY KEY NOT NULL REFERENCES units (unit),
    at          INTEGER NOT NULL,
    by          TEXT NOT NULL,
    reason      TEXT NOT NULL,
    serial      TEXT,                                         -- of its certificate, hex
    sinks       BLOB NOT NULL,                                -- MessagePack list: who has its enrollment already
    given_back  INTEGER,                                      -- when the signer confirmed it
    proof       TEXT                                          -- what the signer recorded
) STRICT;
CREATE TRIGGER scraps_keep_rows BEFORE DELETE ON scraps
    BEGIN SELECT raise(ABORT, 'scrap records are never deleted'); END;
"""

MIGRATIONS: Final[tuple[str, ...]] = (
    V1,
    V2,
    KEYS_SEEN,
    AUDIT_TREE,
    RELEASES,
    WRAP_KEYS,
    TRUST,
    STOCK,
    ATTESTATIONS,
    SIGNED_ORDERS,
)
"""Migration n (from 1) brings a store of version n - 1 to version n. PRAGMA user_version holds the version."""


def version(db: apsw.Connection) -> int:
    """The store's version, 0 for an empty file. StationError for a database that isn't a Hallmark store."""
    number = db.pragma("user_version")
    owner = db.pragma("application_id")
    if number and owner != APPLICATION_ID:
        raise StationError(f"the database is no Hallmark store (application_id {owner:#x})")
    return int(number)


def migrate(db: apsw.Connection, migrations: tuple[str, ...] = MIGRATIONS) -> int:
    """Brings the store to the newest version, one durable transaction for each migration. The version it had."""
    found = version(db)
    if found > len(migrations):
        raise StationError(
            f"the store has version {found}, this Hallmark knows up to {len(migrations)}",
            hint="Install the Hallmark version that was used last: stores are never migrated back.",
        )
    db.create_scalar_function("audit_leaf", lambda *row: leaf_of(*row), 8, deterministic=True)
    for number, script in enumerate(migrations[found:], found + 1):
        with db:
            db.execute(script)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {number}")
    return found
