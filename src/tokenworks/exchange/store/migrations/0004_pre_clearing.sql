-- Step 2: clearing between entities: whose customer a line is of, what is not stated yet, and what was agreed.

-- The statement that has the line; '' until one has.
ALTER TABLE served ADD COLUMN statement {text} NOT NULL DEFAULT '';
ALTER TABLE served ADD COLUMN home {text} NOT NULL DEFAULT 'operator';
ALTER TABLE served ADD COLUMN loss_ustu {int} NOT NULL DEFAULT 0;
ALTER TABLE served ADD COLUMN loss_nano {int} NOT NULL DEFAULT 0;
UPDATE served SET loss_ustu = (SELECT loss_ustu FROM receipt WHERE id = served.receipt),
  loss_nano = (SELECT loss_nano FROM receipt WHERE id = served.receipt);
CREATE INDEX served_statement ON served (statement, entity, home, receipt);

CREATE TABLE unstated (
  entity {text} NOT NULL, home {text} NOT NULL, day_ns {int} NOT NULL, lines {int} NOT NULL,
  ustu {sum} NOT NULL, loss_ustu {sum} NOT NULL, nano {sum} NOT NULL, loss_nano {sum} NOT NULL, fee_nano {sum} NOT NULL,
  PRIMARY KEY (entity, home, day_ns)
) {keyed};
INSERT INTO unstated SELECT entity, home, at_ns / 86400000000000 * 86400000000000 AS day_ns, count(*),
  sum(ustu), sum(loss_ustu), sum(nano), sum(loss_nano), sum(fee_nano) FROM served GROUP BY 1, 2, 3;

-- Statements, disputes and nettings. A statement's figures stay; a dispute and a pair get their end.
CREATE TABLE clearing (
  kind {text} NOT NULL, id {text} NOT NULL, doc {json} NOT NULL, PRIMARY KEY (kind, id)
) {keyed};
