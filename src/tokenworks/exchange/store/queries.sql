-- name: has_meta
SELECT 1 FROM sqlite_schema WHERE name = 'meta';

-- name: schema
SELECT value FROM meta WHERE key = 'schema';

-- name: save_schema
INSERT INTO meta VALUES ('schema', :value) ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: all_accounts
SELECT doc FROM account ORDER BY id;

-- name: all_budgets
SELECT doc FROM budget ORDER BY id;

-- name: all_keys
SELECT doc FROM api_key ORDER BY id;

-- name: all_holds
SELECT doc FROM hold ORDER BY receipt;

-- name: all_sites
SELECT doc FROM site ORDER BY since_ns, name;

-- name: all_bills
SELECT site, what, nano FROM power_bill ORDER BY site, what;

-- name: all_balances
SELECT book, account, amount FROM balance ORDER BY book, account;

-- name: interval_ends
SELECT site, max(end_ns) FROM interval GROUP BY site ORDER BY site;

-- name: last_intervals
SELECT start_ns, max(end_ns), max(corrects) FROM interval WHERE site = :site
GROUP BY start_ns ORDER BY start_ns DESC LIMIT :limit;

-- name: sources
SELECT writer, epoch, segment, "offset", crc, dead FROM source ORDER BY writer, epoch;

-- name: held
SELECT receipt FROM hold ORDER BY receipt;

-- name: holds_of
SELECT receipt FROM hold WHERE writer = :writer AND epoch = :epoch ORDER BY receipt;

-- name: settled_among
SELECT id FROM receipt WHERE id IN (SELECT value FROM json_each(:ids)) ORDER BY id;

-- name: ended_among
SELECT DISTINCT receipt FROM energy_line
WHERE ended = 1 AND receipt IN (SELECT value FROM json_each(:ids)) ORDER BY receipt;

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
-- The same hold word for word is the same hold, and of the writer that placed it first; only its document can grow.
INSERT INTO hold VALUES (:receipt, :writer, :epoch, :doc) ON CONFLICT (receipt) DO UPDATE SET doc = excluded.doc;

-- name: drop_hold
DELETE FROM hold WHERE receipt = :receipt;

-- name: save_balance
INSERT INTO balance VALUES (:book, :account, :amount)
ON CONFLICT (book, account) DO UPDATE SET amount = excluded.amount;

-- name: save_entry
INSERT INTO entry (txn, book, account, amount, at_ns) VALUES (:txn, :book, :account, :amount, :at_ns);

-- name: save_receipt
INSERT INTO receipt (id, account, at_ns, tokens, output, ustu, nano, loss_ustu, loss_nano, doc,
                     leaf, seq, cum_ustu, cum_nano, metered)
VALUES (:id, :account, :at_ns, :tokens, :output, :ustu, :nano, :loss_ustu, :loss_nano, :doc,
        :leaf, :seq, :cum_ustu, :cum_nano, :metered);

-- name: save_interval
INSERT INTO interval (site, start_ns, corrects, end_ns, meter_mj, bill_nano, carbon_ug, market_ug, water_ul,
                      idle_embodied_ug, doc)
VALUES (:site, :start_ns, :corrects, :end_ns, :meter_mj, :bill_nano, :carbon_ug, :market_ug, :water_ul,
        :idle_embodied_ug, :doc);

-- name: save_bill
INSERT INTO power_bill (site, what, nano) VALUES (:site, :what, :nano)
ON CONFLICT (site, what) DO UPDATE SET nano = excluded.nano;

-- name: save_energy_line
INSERT INTO energy_line (receipt, energy_mj, energy_nano, overhead_mj, overhead_nano, carbon_ug, slice_ns, device_nano,
                         market_ug, water_ul, embodied_ug, ended, site, start_ns, corrects, leaf)
VALUES (:receipt, :energy_mj, :energy_nano, :overhead_mj, :overhead_nano, :carbon_ug, :slice_ns, :device_nano,
        :market_ug, :water_ul, :embodied_ug, :ended, :site, :start_ns, :corrects, :leaf);

-- name: mark_metered
UPDATE receipt SET metered = 1 WHERE id = :receipt;

-- name: save_position
INSERT INTO source (writer, epoch, segment, "offset", crc, dead)
VALUES (:writer, :epoch, :segment, :offset, :crc, :dead)
ON CONFLICT (writer, epoch) DO UPDATE
SET segment = excluded.segment, "offset" = excluded."offset", crc = excluded.crc, dead = excluded.dead;

-- name: save_anomaly
INSERT INTO anomaly (writer, epoch, reason, record) VALUES (:writer, :epoch, :reason, :record);

-- name: receipt
SELECT doc, metered FROM receipt WHERE id = :id;

-- name: recent_receipts
SELECT id FROM receipt WHERE (CAST(:account AS TEXT) IS NULL OR account = :account)
ORDER BY at_ns DESC, id DESC LIMIT :limit;

-- name: site_facts
SELECT doc FROM site WHERE name = :name AND since_ns <= :at_ns ORDER BY since_ns DESC LIMIT 1;

-- name: unmetered
SELECT doc FROM receipt WHERE metered = 0 ORDER BY at_ns, id LIMIT :limit;

-- name: book_sums
SELECT book, sum(amount), count(*) FROM entry GROUP BY book ORDER BY book;

-- name: wrong_balances
SELECT book, account, total, amount FROM (
  SELECT book, account, sum(amount) AS total FROM entry GROUP BY book, account
) AS lines LEFT JOIN balance USING (book, account) WHERE total IS DISTINCT FROM amount
UNION ALL
SELECT book, account, NULL, amount FROM balance
WHERE amount <> 0 AND NOT EXISTS (SELECT 1 FROM entry AS e WHERE e.book = balance.book AND e.account = balance.account)
ORDER BY 1, 2 LIMIT 20;

-- name: wrong_transactions
SELECT txn, book, sum(amount) FROM entry GROUP BY txn, book HAVING sum(amount) <> 0 ORDER BY txn, book LIMIT 20;

-- name: receipt_sums
SELECT account, sum(ustu - loss_ustu), sum(nano - loss_nano), sum(loss_ustu), sum(loss_nano), count(*)
FROM receipt GROUP BY account ORDER BY account;

-- name: energy_line_sums
SELECT site, sum(energy_mj) FROM energy_line GROUP BY site ORDER BY site;

-- name: balances
SELECT book, account, amount FROM balance WHERE amount <> 0 ORDER BY book, account;

-- name: anomalies
SELECT seq, writer, epoch, reason FROM anomaly ORDER BY seq LIMIT 20;

-- name: cake_receipts
SELECT count(*), sum(tokens), sum(output), sum(ustu), sum(nano), sum(loss_nano), sum(metered) FROM receipt
WHERE at_ns >= :since_ns;

-- name: cake_intervals
SELECT doc FROM interval WHERE end_ns > :since_ns ORDER BY start_ns, site, corrects LIMIT :limit;

-- name: cake_lines
SELECT sum(energy_mj), sum(energy_nano), sum(slice_ns), sum(device_nano), sum(embodied_ug) FROM energy_line
WHERE start_ns >= :since_ns;

-- name: counts
SELECT (SELECT count(*) FROM receipt), (SELECT count(*) FROM hold),
       (SELECT count(*) FROM interval WHERE corrects = 0), (SELECT count(*) FROM receipt WHERE metered = 0),
       (SELECT count(*) FROM interval WHERE corrects > 0);

-- name: beside
SELECT sum(carbon_ug), sum(market_ug), sum(water_ul), sum(idle_embodied_ug),
       (SELECT sum(embodied_ug) FROM energy_line) FROM interval;

-- name: last_txn
SELECT coalesce(max(txn), 0) FROM entry;

-- name: save_package
INSERT INTO package (code, doc) VALUES (:id, :doc) ON CONFLICT (code) DO UPDATE SET doc = excluded.doc;

-- name: save_entity
INSERT INTO entity (name, doc) VALUES (:id, :doc) ON CONFLICT (name) DO UPDATE SET doc = excluded.doc;

-- name: save_grant
INSERT INTO sold_grant (id, account, used_ustu, ended_ns, doc) VALUES (:id, :account, :used_ustu, :ended_ns, :doc)
ON CONFLICT (id) DO UPDATE SET used_ustu = excluded.used_ustu, ended_ns = excluded.ended_ns, doc = excluded.doc;

-- name: save_tally
INSERT INTO tally (budget, window_ns, window_ustu, window_nano, carved_ustu, carved_nano)
VALUES (:budget, :window_ns, :window_ustu, :window_nano, :carved_ustu, :carved_nano)
ON CONFLICT (budget) DO UPDATE SET window_ns = excluded.window_ns, window_ustu = excluded.window_ustu,
  window_nano = excluded.window_nano, carved_ustu = excluded.carved_ustu, carved_nano = excluded.carved_nano;

-- name: save_lease
INSERT INTO lease (writer, epoch, counter, window_ns, allowance, used)
VALUES (:writer, :epoch, :counter, :window_ns, :allowance, :used)
ON CONFLICT (writer, epoch, counter) DO UPDATE
SET window_ns = excluded.window_ns, allowance = excluded.allowance, used = excluded.used;

-- name: drop_leases
DELETE FROM lease WHERE writer = :writer AND epoch = :epoch;

-- name: all_packages
SELECT doc FROM package ORDER BY code;

-- name: all_grants
SELECT doc FROM sold_grant ORDER BY id;

-- name: all_entities
SELECT doc FROM entity ORDER BY name;

-- name: all_tallies
SELECT id, spent_ustu, spent_nano, coalesce(window_ns, 0), coalesce(window_ustu, 0), coalesce(window_nano, 0),
       coalesce(carved_ustu, 0), coalesce(carved_nano, 0) FROM budget LEFT JOIN tally ON budget = id ORDER BY id;

-- name: all_leases
SELECT writer, epoch, counter, window_ns, allowance, used FROM lease ORDER BY writer, epoch, counter;

-- name: receipt_page
SELECT id, account, ustu, nano, loss_ustu, loss_nano, doc FROM receipt WHERE id > :after ORDER BY id LIMIT :limit;

-- name: last_receipt
SELECT doc FROM receipt ORDER BY id DESC LIMIT 1;

-- name: save_tile
INSERT INTO log_tile (level, place, hashes) VALUES (:level, :place, :hashes)
ON CONFLICT (level, place) DO UPDATE SET hashes = excluded.hashes;

-- name: save_log_account
INSERT INTO log_account (account, seq, ustu, nano) VALUES (:account, :seq, :ustu, :nano)
ON CONFLICT (account) DO UPDATE SET seq = excluded.seq, ustu = excluded.ustu, nano = excluded.nano;

-- name: save_checkpoint
INSERT INTO log_checkpoint (size, at_ns, note) VALUES (:size, :at_ns, :note)
ON CONFLICT (size) DO UPDATE SET at_ns = excluded.at_ns, note = excluded.note;

-- name: last_tile
SELECT place, hashes FROM log_tile WHERE level = 0 ORDER BY place DESC LIMIT 1;

-- name: log_tile
SELECT hashes FROM log_tile WHERE level = :level AND place = :place;

-- name: log_account
SELECT seq, ustu, nano FROM log_account WHERE account = :account;

-- name: settled_leaf
SELECT leaf, seq, cum_ustu, cum_nano, doc FROM receipt WHERE id = :receipt;

-- name: metered_leaves
SELECT e.leaf, e.ended, i.doc, e.energy_mj, e.energy_nano, e.overhead_mj, e.overhead_nano, e.carbon_ug, e.slice_ns,
       e.device_nano, e.market_ug, e.water_ul, e.embodied_ug
FROM energy_line AS e JOIN interval AS i ON i.site = e.site AND i.start_ns = e.start_ns AND i.corrects = e.corrects
WHERE e.receipt = :receipt ORDER BY e.leaf, e.site, e.start_ns, e.corrects;

-- name: last_checkpoint
SELECT note FROM log_checkpoint ORDER BY size DESC LIMIT 1;

-- name: sold_page
SELECT r.id, r.doc, e.energy_mj, e.carbon_ug FROM receipt AS r LEFT JOIN (
  SELECT receipt, sum(energy_mj + overhead_mj) AS energy_mj, sum(carbon_ug) AS carbon_ug
  FROM energy_line GROUP BY receipt HAVING sum(slice_ns) <> 0
) AS e ON e.receipt = r.id
WHERE r.id > :after AND (CAST(:account AS TEXT) IS NULL OR r.account = :account)
  AND r.at_ns >= :since_ns AND r.at_ns < :until_ns ORDER BY r.id LIMIT :limit;

-- name: entry_page
SELECT seq, txn, book, account, amount, at_ns FROM entry
WHERE seq > :seq AND at_ns >= :since_ns AND at_ns < :until_ns ORDER BY seq LIMIT :limit;

-- name: owed_change
SELECT coalesce(sum(amount), 0) FROM entry
WHERE book = 'money' AND account = :account AND at_ns >= :since_ns AND at_ns < :until_ns;

-- name: save_served
INSERT INTO served (receipt, entity, home, at_ns, ustu, loss_ustu, nano, loss_nano, fee_nano)
VALUES (:receipt, :entity, :home, :at_ns, :ustu, :loss_ustu, :nano, :loss_nano, :fee_nano);

-- name: save_unstated
INSERT INTO unstated (entity, home, day_ns, lines, ustu, loss_ustu, nano, loss_nano, fee_nano)
VALUES (:entity, :home, :day_ns, :lines, :ustu, :loss_ustu, :nano, :loss_nano, :fee_nano)
ON CONFLICT (entity, home, day_ns) DO UPDATE SET lines = unstated.lines + excluded.lines,
  ustu = unstated.ustu + excluded.ustu, loss_ustu = unstated.loss_ustu + excluded.loss_ustu,
  nano = unstated.nano + excluded.nano, loss_nano = unstated.loss_nano + excluded.loss_nano,
  fee_nano = unstated.fee_nano + excluded.fee_nano;

-- name: all_unstated
SELECT entity, home, day_ns, lines, ustu, loss_ustu, nano, loss_nano, fee_nano FROM unstated
ORDER BY entity, home, day_ns;

-- name: served_page
SELECT receipt, ustu, loss_ustu, nano, loss_nano, fee_nano FROM served
WHERE statement = :id AND entity = :entity AND home = :home AND at_ns < :until_ns AND receipt > :after
ORDER BY receipt LIMIT :limit;

-- name: served_sums
SELECT statement, entity, home, count(*), sum(ustu), sum(loss_ustu), sum(nano), sum(loss_nano), sum(fee_nano)
FROM served GROUP BY statement, entity, home ORDER BY statement, entity, home;

-- name: mark_stated
UPDATE served SET statement = :id
WHERE statement = '' AND entity = :entity AND home = :home AND at_ns < :until_ns
  AND NOT EXISTS (SELECT 1 FROM clearing WHERE kind = 'statement' AND id = :id);

-- name: drop_unstated
DELETE FROM unstated WHERE entity = :entity AND home = :home AND day_ns < :until_ns
  AND NOT EXISTS (SELECT 1 FROM clearing WHERE kind = 'statement' AND id = :id);

-- name: save_statement
INSERT INTO clearing (kind, id, doc) VALUES ('statement', :id, :doc)
ON CONFLICT (kind, id) DO UPDATE SET doc = excluded.doc;

-- name: save_dispute
INSERT INTO clearing (kind, id, doc) VALUES ('dispute', :id, :doc)
ON CONFLICT (kind, id) DO UPDATE SET doc = excluded.doc;

-- name: save_netting
INSERT INTO clearing (kind, id, doc) VALUES ('netting', :id, :doc)
ON CONFLICT (kind, id) DO UPDATE SET doc = excluded.doc;

-- name: all_statements
SELECT doc FROM clearing WHERE kind = 'statement' ORDER BY id;

-- name: all_disputes
SELECT doc FROM clearing WHERE kind = 'dispute' ORDER BY id;

-- name: all_nettings
SELECT doc FROM clearing WHERE kind = 'netting' ORDER BY id;
