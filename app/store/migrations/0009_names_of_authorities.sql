-- CAs have names of their own, and say what becomes of certificates that would outlive them.
ALTER TABLE certificate_authorities ADD COLUMN name text;
ALTER TABLE certificate_authorities ADD COLUMN not_after_policy text NOT NULL DEFAULT 'refuse';
ALTER TABLE certificate_authorities ADD CONSTRAINT certificate_authorities_name_check
    CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$');
ALTER TABLE certificate_authorities ADD CONSTRAINT certificate_authorities_not_after_policy_check
    CHECK (not_after_policy IN ('refuse', 'truncate'));
CREATE UNIQUE INDEX certificate_authorities_name_key ON certificate_authorities (account_id, name);
COMMENT ON COLUMN certificate_authorities.name IS 'For people and for the newer calls of Infisical''s API; NULL until one was given.';
COMMENT ON COLUMN certificate_authorities.not_after_policy IS 'Whether a leaf that would outlive the CA is refused, or ends with it.';
