-- TLS servers fetch certificates and keys with tokens of their own.
CREATE TABLE delivery_tokens (
    id uuid NOT NULL,
    account_id uuid NOT NULL,
    zone_id uuid NOT NULL,
    certificate_id uuid,
    host text,
    name text NOT NULL,
    digest bytea,
    pepper_id uuid,
    networks cidr[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT delivery_tokens_pkey PRIMARY KEY (id),
    CONSTRAINT delivery_tokens_digest_key UNIQUE (digest),
    CONSTRAINT delivery_tokens_zone_fkey FOREIGN KEY (account_id, zone_id)
        REFERENCES zones (account_id, id) ON DELETE CASCADE,
    CONSTRAINT delivery_tokens_pepper_id_fkey FOREIGN KEY (pepper_id) REFERENCES peppers (id),
    CONSTRAINT delivery_tokens_reach_check CHECK (num_nonnulls(certificate_id, host) <= 1),
    CONSTRAINT delivery_tokens_host_check CHECK (length(host) BETWEEN 1 AND 255),
    CONSTRAINT delivery_tokens_name_check CHECK (length(name) BETWEEN 1 AND 120),
    CONSTRAINT delivery_tokens_digest_check CHECK (length(digest) = 32),
    CONSTRAINT delivery_tokens_networks_check CHECK (cardinality(networks) BETWEEN 1 AND 32),
    CONSTRAINT delivery_tokens_revoked_check CHECK (num_nonnulls(digest, pepper_id) = CASE WHEN revoked_at IS NULL THEN 2 ELSE 0 END)
);
COMMENT ON TABLE delivery_tokens IS 'Tokens of TLS servers, which open certificates with their keys at the delivery listener and nothing else.';
COMMENT ON COLUMN delivery_tokens.certificate_id IS 'The only certificate that it opens; else those of the zone that serve host, or all.';
COMMENT ON COLUMN delivery_tokens.digest IS 'HMAC-SHA-256 of the token under the pepper pepper_id; NULL once it is revoked.';
COMMENT ON COLUMN delivery_tokens.networks IS 'From where it is taken.';

CREATE TABLE key_deliveries (
    account_id uuid NOT NULL,
    key_id uuid NOT NULL,
    token_id uuid NOT NULL,
    certificate_id uuid NOT NULL,
    count bigint NOT NULL DEFAULT 0,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT key_deliveries_pkey PRIMARY KEY (account_id, key_id, token_id),
    CONSTRAINT key_deliveries_count_check CHECK (count >= 0)
);
ALTER TABLE key_deliveries ADD CONSTRAINT key_deliveries_key_fkey FOREIGN KEY (account_id, key_id)
    REFERENCES private_keys (account_id, id) ON DELETE CASCADE;
CREATE INDEX key_deliveries_token_id_idx ON key_deliveries (token_id);
COMMENT ON TABLE key_deliveries IS 'Which keys have left for which delivery token: the first time is in audit_log too, later ones are counted here.';
COMMENT ON COLUMN key_deliveries.certificate_id IS 'The certificate with which the key left first.';
COMMENT ON COLUMN key_deliveries.count IS 'How often it left, up to some seconds ago.';
