-- Tenants manage themselves: the audit log says how an attempt ended and whose token it was, failed authentications
-- are counted, and the lists of tokens have their order.
ALTER TABLE audit_log ADD COLUMN user_id uuid;
ALTER TABLE audit_log ADD COLUMN result text NOT NULL DEFAULT 'success';
ALTER TABLE audit_log ADD COLUMN status smallint;
ALTER TABLE audit_log ADD COLUMN count bigint NOT NULL DEFAULT 1;
COMMENT ON TABLE audit_log IS 'Every change, written in the transaction that makes it, and every attempt that was denied. No bodies and no secrets.';
COMMENT ON COLUMN audit_log.user_id IS 'Whose global key or token acted; NULL for a token of an account.';
COMMENT ON COLUMN audit_log.result IS 'success, or failure for what was denied.';
COMMENT ON COLUMN audit_log.status IS 'The HTTP status of the answer; NULL for the command line.';
COMMENT ON COLUMN audit_log.count IS 'How many attempts the row stands for: failed authentications are one row an address and minute.';

CREATE TABLE failed_authentications (
    network cidr NOT NULL,
    minute timestamptz NOT NULL,
    count bigint NOT NULL,
    CONSTRAINT failed_authentications_pkey PRIMARY KEY (network, minute)
);
COMMENT ON TABLE failed_authentications IS 'Failed authentications of the last minutes, summed over all workers, until they are one row each in audit_log.';
COMMENT ON COLUMN failed_authentications.network IS 'The address, /32 or the /64 of IPv6; 0.0.0.0/0 when it is not known, ::/0 for more addresses than are counted apart.';

CREATE INDEX tokens_account_id_idx ON tokens (account_id, issued_on, id) WHERE account_id IS NOT NULL;
CREATE INDEX tokens_user_id_idx ON tokens (user_id, issued_on, id) WHERE user_id IS NOT NULL;
