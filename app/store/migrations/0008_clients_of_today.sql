-- What clients send comes back, whoever was a member of a deleted account is told so, and a zone may have a certificate
-- twice.
ALTER TABLE accounts ADD COLUMN enforce_twofactor boolean NOT NULL DEFAULT false;
ALTER TABLE accounts ADD COLUMN abuse_contact_email text;
ALTER TABLE accounts
    ADD CONSTRAINT accounts_abuse_contact_email_check CHECK (length(abuse_contact_email) BETWEEN 3 AND 254);
COMMENT ON COLUMN accounts.enforce_twofactor IS 'Kept and given back for clients; there is no second factor here.';

ALTER TABLE zones ADD COLUMN sent_name text;
ALTER TABLE zones ADD COLUMN vanity_name_servers text[] NOT NULL DEFAULT '{}';
ALTER TABLE zones ADD CONSTRAINT zones_sent_name_check CHECK (length(sent_name) BETWEEN 1 AND 253);
COMMENT ON COLUMN zones.name IS 'In lower case, with A-labels.';
COMMENT ON COLUMN zones.sent_name IS 'The name in Unicode as it was sent; NULL where that was ASCII.';
COMMENT ON COLUMN zones.vanity_name_servers IS 'Kept and given back for clients.';

CREATE TABLE deleted_scopes (
    id uuid NOT NULL,
    account_id uuid NOT NULL,
    members json NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT deleted_scopes_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE deleted_scopes IS 'Deleted accounts, and their zones: who was a member is answered 404/7003 there, and all others 403.';
COMMENT ON COLUMN deleted_scopes.members IS 'The role of each user who was a member of the account, by the user''s id.';

ALTER TABLE tokens ADD COLUMN not_before_text text;
ALTER TABLE tokens ADD COLUMN expires_on_text text;
ALTER TABLE tokens
    ADD CONSTRAINT tokens_times_check CHECK (length(not_before_text) <= 64 AND length(expires_on_text) <= 64);
COMMENT ON COLUMN tokens.expires_on_text IS 'expires_on as it was sent, because clients compare the text; likewise not_before_text.';

ALTER TABLE custom_certificates DROP CONSTRAINT custom_certificates_sha256_key;
CREATE INDEX custom_certificates_sha256_idx ON custom_certificates (account_id, zone_id, sha256);
