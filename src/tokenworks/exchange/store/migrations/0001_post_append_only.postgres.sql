-- What is written in the books stays written: PostgreSQL is open to other hands than the ledger's, a file is not.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of % are never changed or removed', TG_TABLE_NAME
    USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER entry_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON entry
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER receipt_stays BEFORE DELETE OR TRUNCATE ON receipt
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A receipt's only change: a closed interval has taken its work. Compared as text, so that later columns are covered.
CREATE FUNCTION refuse_change_but_metered() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  changed receipt%ROWTYPE := NEW;
BEGIN
  changed.metered := OLD.metered;
  IF CAST(changed AS TEXT) IS DISTINCT FROM CAST(OLD AS TEXT) THEN
    RAISE EXCEPTION 'of a receipt, only metered can change' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER receipt_says_the_same BEFORE UPDATE ON receipt
  FOR EACH ROW EXECUTE FUNCTION refuse_change_but_metered();

-- Lines of one transaction sum to zero in each book. They arrive in one statement, so one look at its rows is enough:
-- a deferred trigger would look once for every row, and need an index on txn for it.
CREATE FUNCTION refuse_unbalanced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT 1 FROM written GROUP BY txn, book HAVING sum(amount) <> 0) THEN
    RAISE EXCEPTION 'entries of a transaction do not sum to zero' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER entry_balances AFTER INSERT ON entry REFERENCING NEW TABLE AS written
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_unbalanced();
