-- Signed certificates come back to their keys: custom certificates with their history, and the age at which a key is old.
ALTER TABLE accounts ADD COLUMN key_max_age_days integer NOT NULL DEFAULT 398;
ALTER TABLE accounts ADD CONSTRAINT accounts_key_max_age_days_check CHECK (key_max_age_days BETWEEN 1 AND 36500);
COMMENT ON COLUMN accounts.key_max_age_days IS 'A key that is older, in days, is told in the messages of its CSR and certificate.';
ALTER TABLE zones ADD COLUMN certificate_quota integer;
ALTER TABLE zones ADD CONSTRAINT zones_certificate_quota_check CHECK (certificate_quota >= 0);
COMMENT ON COLUMN zones.certificate_quota IS 'How many custom certificates the zone may hold; NULL is no bound.';

CREATE TABLE custom_certificates (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    zone_id uuid NOT NULL,
    key_id uuid NOT NULL,
    custom_csr_id uuid,
    type text NOT NULL,
    bundle_method text NOT NULL,
    geo_label text,
    policy text,
    deploy text,
    priority integer NOT NULL DEFAULT 0,
    sha256 bytea NOT NULL,
    hosts text[] NOT NULL,
    issuer text NOT NULL,
    signature text NOT NULL,
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    chain text NOT NULL,
    uploaded_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT custom_certificates_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT custom_certificates_zone_fkey FOREIGN KEY (account_id, zone_id) REFERENCES zones (account_id, id),
    CONSTRAINT custom_certificates_key_fkey FOREIGN KEY (account_id, key_id) REFERENCES private_keys (account_id, id),
    CONSTRAINT custom_certificates_sha256_key UNIQUE (account_id, zone_id, sha256),
    CONSTRAINT custom_certificates_sha256_check CHECK (length(sha256) = 32),
    CONSTRAINT custom_certificates_type_check CHECK (type IN ('legacy_custom', 'sni_custom')),
    CONSTRAINT custom_certificates_bundle_method_check CHECK (bundle_method IN ('ubiquitous', 'optimal', 'force')),
    CONSTRAINT custom_certificates_geo_label_check CHECK (geo_label IN ('us', 'eu', 'highest_security')),
    CONSTRAINT custom_certificates_policy_check CHECK (length(policy) BETWEEN 1 AND 1024),
    CONSTRAINT custom_certificates_deploy_check CHECK (deploy IN ('staging', 'production')),
    CONSTRAINT custom_certificates_priority_check CHECK (priority >= 0)
);
CREATE INDEX custom_certificates_zone_id_idx ON custom_certificates (account_id, zone_id, priority, uploaded_at, id);
CREATE INDEX custom_certificates_key_id_idx ON custom_certificates (account_id, key_id);
CREATE INDEX custom_certificates_not_after_idx ON custom_certificates (not_after);
COMMENT ON TABLE custom_certificates IS 'Certificates of zones as they are now. A certificate keeps its id when it is renewed.';
COMMENT ON COLUMN custom_certificates.key_id IS 'Its private key: a CSR''s, or an uploaded one of its own. While it is named here it cannot be deleted.';
COMMENT ON COLUMN custom_certificates.custom_csr_id IS 'The CSR whose key it uses; NULL for an uploaded key.';
COMMENT ON COLUMN custom_certificates.sha256 IS 'SHA-256 of the leaf''s DER.';
COMMENT ON COLUMN custom_certificates.hosts IS 'The leaf''s DNS names and addresses, in its order.';
COMMENT ON COLUMN custom_certificates.chain IS 'PEM: the leaf, then what is sent above it.';

CREATE TABLE certificate_history (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    certificate_id uuid NOT NULL,
    custom_csr_id uuid,
    sha256 bytea NOT NULL,
    hosts text[] NOT NULL,
    issuer text NOT NULL,
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    chain text NOT NULL,
    uploaded_at timestamptz NOT NULL,
    superseded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT certificate_history_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT certificate_history_certificate_fkey FOREIGN KEY (account_id, certificate_id)
        REFERENCES custom_certificates (account_id, id) ON DELETE CASCADE
);
CREATE INDEX certificate_history_certificate_id_idx ON certificate_history (account_id, certificate_id, superseded_at);
COMMENT ON TABLE certificate_history IS 'What a certificate was before its renewals. It names CSRs without keeping them.';
