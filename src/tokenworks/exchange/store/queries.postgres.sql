-- Statements of queries.sql that PostgreSQL needs in other words. COPY takes rows of values in the order of its columns.

-- name: has_meta
SELECT 1 WHERE to_regclass('meta') IS NOT NULL;

-- name: settled_among
SELECT id FROM receipt WHERE id IN (SELECT json_array_elements_text(CAST(:ids AS json))) ORDER BY id;

-- name: ended_among
SELECT DISTINCT receipt FROM energy_line
WHERE ended = 1 AND receipt IN (SELECT json_array_elements_text(CAST(:ids AS json))) ORDER BY receipt;

-- name: save_entry
COPY entry (txn, book, account, amount, at_ns) FROM STDIN;

-- name: save_receipt
COPY receipt (id, account, at_ns, tokens, output, ustu, nano, loss_ustu, loss_nano, doc,
              leaf, seq, cum_ustu, cum_nano, metered) FROM STDIN;

-- name: save_energy_line
COPY energy_line (receipt, energy_mj, energy_nano, overhead_mj, overhead_nano, carbon_ug, slice_ns, device_nano,
                  market_ug, water_ul, embodied_ug, ended, site, start_ns, corrects, leaf) FROM STDIN;
