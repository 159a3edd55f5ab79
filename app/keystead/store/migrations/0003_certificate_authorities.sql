-- Accounts get certificate authorities of their own: the CAs, their certificates, what they sign, and their CRLs.
ALTER TABLE accounts ADD COLUMN ca_quota integer;
ALTER TABLE accounts ADD CONSTRAINT accounts_ca_quota_check CHECK (ca_quota >= 0);
COMMENT ON COLUMN accounts.ca_quota IS 'How many CAs the account may hold; NULL is the bound of the list, 1000.';

CREATE TABLE access_tokens (
    digest bytea NOT NULL,
    token_id uuid NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT access_tokens_pkey PRIMARY KEY (digest),
    CONSTRAINT access_tokens_token_id_fkey FOREIGN KEY (token_id) REFERENCES tokens (id) ON DELETE CASCADE,
    CONSTRAINT access_tokens_digest_check CHECK (length(digest) = 32)
);
CREATE INDEX access_tokens_token_id_idx ON access_tokens (token_id);
CREATE INDEX access_tokens_expires_at_idx ON access_tokens (expires_at);
COMMENT ON TABLE access_tokens IS 'Short-lived tokens of the universal-auth login; each is its API token under another value.';
COMMENT ON COLUMN access_tokens.digest IS 'HMAC-SHA-256 of the access token under the pepper that was the newest.';

CREATE TABLE keks (
    id text NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz,
    CONSTRAINT keks_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE keks IS 'Which KEKs may wrap: the ids alone, their secrets are in the ring. Nothing is sealed under a retired one.';

INSERT INTO keks (id) SELECT kek_id FROM private_keys UNION SELECT kek_id FROM peppers;

CREATE TABLE certificate_authorities (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    type text NOT NULL,
    parent_id uuid,
    disabled boolean NOT NULL DEFAULT false,
    friendly_name text,
    country text NOT NULL,
    organization text NOT NULL,
    organizational_unit text NOT NULL,
    state text NOT NULL,
    common_name text NOT NULL,
    locality text NOT NULL,
    max_path_length integer NOT NULL,
    requires_template boolean NOT NULL,
    key_type text NOT NULL,
    key_id uuid NOT NULL,
    spki_sha256 bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT certificate_authorities_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT certificate_authorities_key_fkey FOREIGN KEY (account_id, key_id) REFERENCES private_keys (account_id, id),
    CONSTRAINT certificate_authorities_parent_fkey FOREIGN KEY (account_id, parent_id)
        REFERENCES certificate_authorities (account_id, id),
    CONSTRAINT certificate_authorities_type_check CHECK (type IN ('root', 'intermediate')),
    CONSTRAINT certificate_authorities_parent_check CHECK (parent_id IS NULL OR type = 'intermediate'),
    CONSTRAINT certificate_authorities_friendly_name_check CHECK (length(friendly_name) BETWEEN 1 AND 255),
    CONSTRAINT certificate_authorities_subject_check CHECK (
        length(country) <= 2 AND length(organization) <= 64 AND length(organizational_unit) <= 64
        AND length(state) <= 128 AND length(common_name) <= 64 AND length(locality) <= 128
        AND length(country || organization || organizational_unit || state || common_name || locality) > 0
    ),
    CONSTRAINT certificate_authorities_max_path_length_check CHECK (max_path_length >= -1),
    CONSTRAINT certificate_authorities_key_type_check
        CHECK (key_type IN ('rsa2048', 'rsa3072', 'rsa4096', 'p256v1', 'p384', 'p521')),
    CONSTRAINT certificate_authorities_spki_sha256_check CHECK (length(spki_sha256) = 32)
);
CREATE UNIQUE INDEX certificate_authorities_key_id_key ON certificate_authorities (account_id, key_id);
CREATE INDEX certificate_authorities_parent_id_idx ON certificate_authorities (account_id, parent_id);
CREATE INDEX certificate_authorities_created_at_idx ON certificate_authorities (account_id, created_at, id);
CREATE INDEX certificate_authorities_id_idx ON certificate_authorities (id);
COMMENT ON TABLE certificate_authorities IS 'CAs of accounts. Without a certificate one is pending; its certificates are versions in ca_certificates.';
COMMENT ON COLUMN certificate_authorities.parent_id IS 'The CA here that signed it; NULL for roots, and for what was signed outside.';
COMMENT ON COLUMN certificate_authorities.max_path_length IS 'What was asked for; -1 is no bound. What holds is in the certificate.';
COMMENT ON COLUMN certificate_authorities.spki_sha256 IS 'SHA-256 of the DER SubjectPublicKeyInfo; whose key may be opened for it.';

CREATE TABLE ca_certificates (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    ca_id uuid NOT NULL,
    version integer NOT NULL,
    serial text NOT NULL,
    sha256 bytea NOT NULL,
    path_length integer,
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    pem text NOT NULL,
    chain text NOT NULL,
    root text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ca_certificates_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT ca_certificates_ca_fkey FOREIGN KEY (account_id, ca_id)
        REFERENCES certificate_authorities (account_id, id) ON DELETE CASCADE,
    CONSTRAINT ca_certificates_version_key UNIQUE (account_id, ca_id, version),
    CONSTRAINT ca_certificates_sha256_check CHECK (length(sha256) = 32),
    CONSTRAINT ca_certificates_version_check CHECK (version >= 1),
    CONSTRAINT ca_certificates_path_length_check CHECK (path_length >= 0)
);
CREATE INDEX ca_certificates_sha256_idx ON ca_certificates (account_id, sha256);
CREATE INDEX ca_certificates_id_idx ON ca_certificates (id);
COMMENT ON TABLE ca_certificates IS 'The certificates of a CA; the highest version is the one it signs under.';
COMMENT ON COLUMN ca_certificates.path_length IS 'Of basicConstraints (RFC 5280 section 4.2.1.9); NULL is no bound.';
COMMENT ON COLUMN ca_certificates.chain IS 'PEM: what is above it, up to and with the root; empty for a root.';
COMMENT ON COLUMN ca_certificates.root IS 'PEM of the root, which the account''s own certificates are checked against.';

CREATE TABLE issued_certificates (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    ca_id uuid NOT NULL,
    issuer_id uuid,
    profile text NOT NULL,
    serial text NOT NULL,
    spki_sha256 bytea NOT NULL,
    subject text NOT NULL,
    common_name text NOT NULL,
    alt_names text[] NOT NULL,
    key_usages text[] NOT NULL,
    extended_key_usages text[] NOT NULL,
    path_length integer,
    friendly_name text,
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    pem text,
    revoked_at timestamptz,
    revocation_reason smallint,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT issued_certificates_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT issued_certificates_ca_fkey FOREIGN KEY (account_id, ca_id)
        REFERENCES certificate_authorities (account_id, id) ON DELETE CASCADE,
    CONSTRAINT issued_certificates_profile_check CHECK (profile IN ('root', 'intermediate', 'leaf')),
    CONSTRAINT issued_certificates_serial_check CHECK (serial ~ '^[4-7][0-9a-f]{39}$'),
    CONSTRAINT issued_certificates_spki_sha256_check CHECK (length(spki_sha256) = 32),
    CONSTRAINT issued_certificates_friendly_name_check CHECK (length(friendly_name) BETWEEN 1 AND 255),
    CONSTRAINT issued_certificates_revocation_check CHECK ((revoked_at IS NULL) = (revocation_reason IS NULL)),
    CONSTRAINT issued_certificates_reason_check CHECK (revocation_reason IN (0, 1, 2, 3, 4, 5, 6, 9, 10))
);
CREATE UNIQUE INDEX issued_certificates_serial_key ON issued_certificates (account_id, serial);
CREATE INDEX issued_certificates_not_after_idx ON issued_certificates (account_id, ca_id, not_after);
CREATE INDEX issued_certificates_revoked_idx ON issued_certificates (account_id, ca_id, not_after)
    WHERE revoked_at IS NOT NULL;
COMMENT ON TABLE issued_certificates IS 'What CAs sign, written down before they sign it: a row without pem says what was meant.';
COMMENT ON COLUMN issued_certificates.issuer_id IS 'The version of the CA''s certificate it was signed under; NULL for a root''s first.';
COMMENT ON COLUMN issued_certificates.serial IS '20 octets in hex, the top two bits 01; unique in the account, and so in the CA.';
COMMENT ON COLUMN issued_certificates.subject IS 'The distinguished name as RFC 4514 writes it.';
COMMENT ON COLUMN issued_certificates.revocation_reason IS 'CRLReason of RFC 5280 section 5.3.1; 0 is unspecified.';

CREATE TABLE crls (
    account_id uuid NOT NULL,
    ca_id uuid NOT NULL,
    number bigint NOT NULL DEFAULT 0,
    der bytea,
    this_update timestamptz,
    next_update timestamptz,
    CONSTRAINT crls_pkey PRIMARY KEY (account_id, ca_id),
    CONSTRAINT crls_ca_fkey FOREIGN KEY (account_id, ca_id)
        REFERENCES certificate_authorities (account_id, id) ON DELETE CASCADE,
    CONSTRAINT crls_number_check CHECK (number >= 0),
    CONSTRAINT crls_der_check CHECK (num_nulls(der, this_update, next_update) IN (0, 3))
);
COMMENT ON TABLE crls IS 'The CRL of each CA as it was signed last; a row without der has not been signed yet.';
COMMENT ON COLUMN crls.number IS 'CRLNumber (RFC 5280 section 5.2.3): each signing takes the next.';

-- Which kinds of actors there are is the program's matter: a row must never be refused for it.
ALTER TABLE audit_log DROP CONSTRAINT audit_log_actor_check;
