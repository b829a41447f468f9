-- The table of a retrysafe store in PostgreSQL. `PostgresStoreBuilder::migrate` runs this, and
-- `PostgresStore::schema` prints it for a table of another name.
CREATE TABLE IF NOT EXISTS "retrysafe_record" (
    -- Counts the attempts as well: it grows by one with each.
    fence bigint NOT NULL,
    -- When the record stops answering. Never before the end of a live lease.
    expires_at timestamptz NOT NULL,
    -- While an attempt is in flight. The retention restarts with every renewal.
    lease_until timestamptz,
    retention interval,
    -- The meaning of this row. A build does not touch rows with a higher one than it knows.
    layout smallint NOT NULL,
    -- 0 in flight, 1 finished, 2 released, 3 given up.
    state smallint NOT NULL,
    previous_vanished boolean NOT NULL,
    id bytea PRIMARY KEY,
    -- Who holds or held the newest attempt. Nobody after an operator ended it.
    owner bytea,
    fingerprint bytea NOT NULL,
    payload bytea
);
CREATE INDEX IF NOT EXISTS "retrysafe_record_by_expiry" ON "retrysafe_record" (expires_at);
