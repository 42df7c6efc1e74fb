-- The ledger's view of all journals, and nothing else: it can be built again from them.
-- Quantities are integers in the smallest units of tokenworks.core.units. Documents are JSON.

CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- How far each writer's journal has been applied. One row moves in the same transaction as what it brought.
CREATE TABLE source (
  writer  TEXT    NOT NULL,
  epoch   INTEGER NOT NULL,
  segment INTEGER NOT NULL,
  offset  INTEGER NOT NULL,
  crc     INTEGER NOT NULL,
  dead    INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (writer, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE account (id TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE budget (
  id TEXT PRIMARY KEY, doc TEXT NOT NULL,
  spent_ustu INTEGER NOT NULL, spent_nano INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE api_key (id TEXT PRIMARY KEY, doc TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE site (name TEXT NOT NULL, since_ns INTEGER NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (name, since_ns)) STRICT, WITHOUT ROWID;
CREATE TABLE hold (receipt TEXT PRIMARY KEY, writer TEXT NOT NULL, epoch INTEGER NOT NULL, doc TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE balance (book TEXT NOT NULL, account TEXT NOT NULL, amount INTEGER NOT NULL, PRIMARY KEY (book, account)) STRICT, WITHOUT ROWID;

-- Every line of the three books, in the order in which the ledger took them.
CREATE TABLE entry (
  seq     INTEGER PRIMARY KEY,
  txn     INTEGER NOT NULL,
  book    TEXT    NOT NULL,
  account TEXT    NOT NULL,
  amount  INTEGER NOT NULL,
  at_ns   INTEGER NOT NULL
) STRICT;

CREATE TABLE receipt (
  id       TEXT PRIMARY KEY,
  account  TEXT    NOT NULL,
  at_ns    INTEGER NOT NULL,
  tokens   INTEGER NOT NULL,
  output   INTEGER NOT NULL,
  ustu     INTEGER NOT NULL,
  nano     INTEGER NOT NULL,
  loss_ustu INTEGER NOT NULL,
  loss_nano INTEGER NOT NULL,
  metered  INTEGER NOT NULL DEFAULT 0,
  doc      TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX receipt_account ON receipt (account, at_ns);
-- Settled work that no closed interval has taken yet: what a restarted site agent must still meter.
CREATE INDEX receipt_unmetered ON receipt (at_ns) WHERE metered = 0;

CREATE TABLE interval (
  site TEXT NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  meter_mj INTEGER NOT NULL, bill_nano INTEGER, carbon_ug INTEGER, doc TEXT NOT NULL,
  PRIMARY KEY (site, start_ns)
) STRICT, WITHOUT ROWID;

CREATE TABLE energy_line (
  receipt TEXT NOT NULL, site TEXT NOT NULL, start_ns INTEGER NOT NULL,
  energy_mj INTEGER NOT NULL, energy_nano INTEGER, overhead_mj INTEGER NOT NULL, overhead_nano INTEGER,
  carbon_ug INTEGER, slice_ns INTEGER NOT NULL, device_nano INTEGER, ended INTEGER NOT NULL,
  PRIMARY KEY (receipt, site, start_ns)
) STRICT, WITHOUT ROWID;

-- Records that the ledger could not apply. Always empty; books shows them otherwise, and nothing is dropped.
CREATE TABLE anomaly (
  seq INTEGER PRIMARY KEY, writer TEXT NOT NULL, epoch INTEGER NOT NULL, reason TEXT NOT NULL, record BLOB NOT NULL
) STRICT;

INSERT INTO meta VALUES ('schema', '1');
