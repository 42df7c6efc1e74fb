-- Step 2: packages and what was sold of them, entities, leases, and budgets that start anew.

CREATE TABLE package (code {text} PRIMARY KEY, doc {json} NOT NULL) {keyed};
CREATE TABLE sold_grant (
  id {text} PRIMARY KEY, account {text} NOT NULL, used_ustu {int} NOT NULL, ended_ns {int}, doc {json} NOT NULL
) {keyed};
CREATE TABLE entity (name {text} PRIMARY KEY, doc {json} NOT NULL) {keyed};

-- What a budget spent in its present window, and what was carved out of it.
CREATE TABLE tally (
  budget {text} PRIMARY KEY, window_ns {int} NOT NULL, window_ustu {sum} NOT NULL, window_nano {sum} NOT NULL,
  carved_ustu {sum} NOT NULL, carved_nano {sum} NOT NULL
) {keyed};

-- Rights that are out with gateways. One row a counter and epoch; gone when the epoch ends.
CREATE TABLE lease (
  writer {text} NOT NULL, epoch {int} NOT NULL, counter {text} NOT NULL,
  window_ns {int} NOT NULL, allowance {sum} NOT NULL, used {sum} NOT NULL,
  PRIMARY KEY (writer, epoch, counter)
) {keyed};
