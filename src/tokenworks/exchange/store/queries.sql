-- name: save_account
INSERT INTO account VALUES (:id, :doc) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc;

-- name: save_budget
INSERT INTO budget VALUES (:id, :doc, :spent_ustu, :spent_nano)
ON CONFLICT (id) DO UPDATE SET doc = excluded.doc, spent_ustu = excluded.spent_ustu, spent_nano = excluded.spent_nano;

-- name: save_key
INSERT INTO api_key VALUES (:id, :doc) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc;

-- name: save_site
INSERT INTO site VALUES (:name, :since_ns, :doc) ON CONFLICT (name, since_ns) DO UPDATE SET doc = excluded.doc;

-- name: save_hold
-- The same hold word for word is the same hold; another one was refused by the ledger.
INSERT INTO hold VALUES (:receipt, :writer, :epoch, :doc) ON CONFLICT DO NOTHING;

-- name: drop_hold
DELETE FROM hold WHERE receipt = :receipt;

-- name: save_balance
INSERT INTO balance VALUES (:book, :account, :amount)
ON CONFLICT (book, account) DO UPDATE SET amount = excluded.amount;

-- name: save_entry
INSERT INTO entry (txn, book, account, amount, at_ns) VALUES (:txn, :book, :account, :amount, :at_ns);

-- name: save_receipt
INSERT INTO receipt (id, account, at_ns, tokens, output, ustu, nano, loss_ustu, loss_nano, metered, doc)
VALUES (:id, :account, :at_ns, :tokens, :output, :ustu, :nano, :loss_ustu, :loss_nano, :metered, :doc);

-- name: save_interval
INSERT INTO interval VALUES (:site, :start_ns, :end_ns, :meter_mj, :bill_nano, :carbon_ug, :doc);

-- name: save_energy_line
INSERT INTO energy_line VALUES (:receipt, :site, :start_ns, :energy_mj, :energy_nano, :overhead_mj, :overhead_nano,
                                :carbon_ug, :slice_ns, :device_nano, :ended);

-- name: mark_metered
UPDATE receipt SET metered = 1 WHERE id = :receipt;

-- name: ended_energy
-- A work can be metered before its settlement arrives from another journal.
SELECT 1 FROM energy_line WHERE receipt = :receipt AND ended = 1 LIMIT 1;

-- name: save_position
INSERT INTO source (writer, epoch, segment, offset, crc, dead) VALUES (:writer, :epoch, :segment, :offset, :crc, :dead)
ON CONFLICT (writer, epoch) DO UPDATE
SET segment = excluded.segment, offset = excluded.offset, crc = excluded.crc, dead = excluded.dead;

-- name: save_anomaly
INSERT INTO anomaly (writer, epoch, reason, record) VALUES (:writer, :epoch, :reason, :record);

-- name: is_receipt
SELECT 1 FROM receipt WHERE id = :id;

-- name: receipt
SELECT doc, metered FROM receipt WHERE id = :id;

-- name: receipt_energy
SELECT sum(energy_mj), sum(energy_nano), sum(overhead_mj), sum(overhead_nano), sum(carbon_ug), sum(slice_ns),
       sum(device_nano), max(ended), count(*)
FROM energy_line WHERE receipt = :id;

-- name: receipt_intervals
SELECT i.doc FROM energy_line AS e JOIN interval AS i ON i.site = e.site AND i.start_ns = e.start_ns
WHERE e.receipt = :id ORDER BY i.start_ns;

-- name: recent_receipts
SELECT id FROM receipt WHERE (:account IS NULL OR account = :account) ORDER BY at_ns DESC LIMIT :limit;

-- name: site_facts
SELECT doc FROM site WHERE name = :name AND since_ns <= :at_ns ORDER BY since_ns DESC LIMIT 1;

-- name: unmetered
SELECT doc FROM receipt WHERE metered = 0 ORDER BY at_ns LIMIT :limit;

-- name: book_sums
SELECT book, sum(amount), count(*) FROM entry GROUP BY book;

-- name: wrong_balances
SELECT book, account, total, amount FROM (
  SELECT book, account, sum(amount) AS total FROM entry GROUP BY book, account
) LEFT JOIN balance USING (book, account) WHERE total IS NOT amount
UNION ALL
SELECT book, account, NULL, amount FROM balance
WHERE amount <> 0 AND NOT EXISTS (SELECT 1 FROM entry AS e WHERE e.book = balance.book AND e.account = balance.account)
LIMIT 20;

-- name: wrong_transactions
SELECT txn, book, sum(amount) AS total FROM entry GROUP BY txn, book HAVING total <> 0 LIMIT 20;

-- name: receipt_sums
SELECT account, sum(ustu - loss_ustu), sum(nano - loss_nano), sum(loss_ustu), sum(loss_nano), count(*)
FROM receipt GROUP BY account;

-- name: wrong_receipts
SELECT id FROM receipt
WHERE (doc ->> '$.receipt', doc ->> '$.account', doc ->> '$.ustu', doc ->> '$.nano', doc ->> '$.loss_ustu',
       doc ->> '$.loss_nano') IS NOT (id, account, ustu, nano, loss_ustu, loss_nano) LIMIT 20;

-- name: energy_line_sums
SELECT site, sum(energy_mj) FROM energy_line GROUP BY site;

-- name: balances
SELECT book, account, amount FROM balance WHERE amount <> 0 ORDER BY book, account;

-- name: anomalies
SELECT seq, writer, epoch, reason FROM anomaly ORDER BY seq LIMIT 20;

-- name: cake_receipts
SELECT count(*), sum(tokens), sum(output), sum(ustu), sum(nano), sum(loss_nano), sum(metered) FROM receipt
WHERE at_ns >= :since_ns;

-- name: cake_intervals
SELECT doc FROM interval WHERE end_ns > :since_ns ORDER BY start_ns LIMIT :limit;

-- name: cake_lines
SELECT sum(energy_mj), sum(energy_nano), sum(overhead_mj), sum(overhead_nano), sum(carbon_ug), sum(slice_ns),
       sum(device_nano) FROM energy_line WHERE start_ns >= :since_ns;

-- name: counts
SELECT (SELECT count(*) FROM receipt), (SELECT count(*) FROM hold), (SELECT count(*) FROM interval),
       (SELECT count(*) FROM receipt WHERE metered = 0);

-- name: last_txn
SELECT coalesce(max(txn), 0) FROM entry;

-- name: budget_sums
SELECT doc ->> '$.budget', sum(ustu - loss_ustu), sum(nano - loss_nano) FROM receipt GROUP BY 1;
