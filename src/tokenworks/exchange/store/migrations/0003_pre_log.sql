-- Step 2: the receipts log: tiles of 256 hashes of complete subtrees, where accounts stand, what was signed.

-- What sites of other entities earned: the lines of their statements.
CREATE TABLE served (
  receipt {text} PRIMARY KEY, entity {text} NOT NULL, at_ns {int} NOT NULL,
  ustu {int} NOT NULL, nano {int} NOT NULL, fee_nano {int} NOT NULL
) {keyed};

CREATE TABLE log_tile (level {int} NOT NULL, place {int} NOT NULL, hashes {bytes} NOT NULL, PRIMARY KEY (level, place)) {keyed};
CREATE TABLE log_account (account {text} PRIMARY KEY, seq {int} NOT NULL, ustu {sum} NOT NULL, nano {sum} NOT NULL) {keyed};
CREATE TABLE log_checkpoint (size {int} PRIMARY KEY, at_ns {int} NOT NULL, note {text} NOT NULL) {keyed};
