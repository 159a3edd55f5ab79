-- The length of each list of CSRs is kept, so that a list of a million costs no more than one of ten thousand.
CREATE TABLE csr_counts (
    account_id uuid NOT NULL,
    scope_id uuid NOT NULL,
    slot smallint NOT NULL,
    count bigint NOT NULL,
    CONSTRAINT csr_counts_pkey PRIMARY KEY (account_id, scope_id, slot)
) WITH (fillfactor = 50);
COMMENT ON TABLE csr_counts IS 'How many custom CSRs each list has: the sum of its slots, of which each writer takes any one.';

INSERT INTO csr_counts (account_id, scope_id, slot, count)
SELECT account_id, scope_id, 0, count(*) FROM custom_csrs GROUP BY account_id, scope_id;
