-- The table of a retrysafe store in MySQL or MariaDB. `MySqlStoreBuilder::migrate` runs this, and
-- `MySqlStore::schema` prints it for a table of another name. There must be no other unique index.
CREATE TABLE IF NOT EXISTS `retrysafe_record` (
    id BINARY(32) NOT NULL,
    -- Who holds or held the newest attempt; nobody after an operator ended it.
    owner BINARY(16) NULL,
    -- Counts the attempts as well: it grows by one with each.
    fence BIGINT UNSIGNED NOT NULL,
    -- The meaning of this row. A build does not touch rows with a higher one than it knows.
    layout TINYINT UNSIGNED NOT NULL,
    -- 0 in flight, 1 finished, 2 released, 3 given up.
    state TINYINT UNSIGNED NOT NULL,
    previous_vanished TINYINT UNSIGNED NOT NULL,
    -- While an attempt is in flight; the retention, in microseconds, restarts with every renewal.
    lease_until DATETIME(6) NULL,
    retention BIGINT NULL,
    -- When the record stops answering. Never before the end of a live lease. All times are UTC.
    expires_at DATETIME(6) NOT NULL,
    -- Changed to make the server flush what it shows, and for nothing else.
    confirmed TINYINT UNSIGNED NOT NULL DEFAULT 0,
    fingerprint VARBINARY(77) NOT NULL,
    payload LONGBLOB NULL,
    PRIMARY KEY (id),
    KEY by_expiry (expires_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
