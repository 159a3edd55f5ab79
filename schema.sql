-- The catalogue of a new database. Databases of an earlier release reach the same one through app/keystead/store/migrations/.
-- Directory tables (accounts, users, memberships, zones, deleted_scopes, tokens, access_tokens, delivery_tokens, keks,
-- peppers, failed_authentications) are keyed by their own id;
-- every other table carries account_id first, so that it can be spread over machines by account
-- (docs/decisions/0003-keys-and-scopes.md).

CREATE TABLE schema_version (
    version integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT schema_version_pkey PRIMARY KEY (version)
);
COMMENT ON TABLE schema_version IS 'One row for each change of this catalogue; the highest version is the one it is at.';

CREATE TABLE accounts (
    id uuid NOT NULL,
    name text NOT NULL,
    slug text NOT NULL,
    name_policy text NOT NULL DEFAULT 'private',
    csrs_enabled boolean NOT NULL DEFAULT true,
    csr_quota integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    key_max_age_days integer NOT NULL DEFAULT 398,
    ca_quota integer,
    enforce_twofactor boolean NOT NULL DEFAULT false,
    abuse_contact_email text,
    csr_subject jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT accounts_pkey PRIMARY KEY (id),
    CONSTRAINT accounts_slug_key UNIQUE (slug),
    CONSTRAINT accounts_name_check CHECK (length(name) BETWEEN 1 AND 100),
    CONSTRAINT accounts_slug_check CHECK (slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    CONSTRAINT accounts_name_policy_check CHECK (name_policy IN ('private', 'public')),
    CONSTRAINT accounts_csr_quota_check CHECK (csr_quota >= 0),
    CONSTRAINT accounts_key_max_age_days_check CHECK (key_max_age_days BETWEEN 1 AND 36500),
    CONSTRAINT accounts_ca_quota_check CHECK (ca_quota >= 0),
    CONSTRAINT accounts_abuse_contact_email_check CHECK (length(abuse_contact_email) BETWEEN 3 AND 254),
    CONSTRAINT accounts_csr_subject_check CHECK (jsonb_typeof(csr_subject) = 'object' AND length(csr_subject::text) <= 2000)
);
COMMENT ON TABLE accounts IS 'The tenants: everything belongs to one account.';
COMMENT ON COLUMN accounts.slug IS 'A short name for people and for Infisical''s projectSlug.';
COMMENT ON COLUMN accounts.name_policy IS 'Which hostnames a CSR may name: private (any well-formed one) or public (Cloudflare''s rules). The operator''s.';
COMMENT ON COLUMN accounts.csrs_enabled IS 'False answers 403/1404 to every custom CSR call of the account''s own list.';
COMMENT ON COLUMN accounts.csr_quota IS 'How many custom CSRs the account''s own list may hold; NULL is no bound.';
COMMENT ON COLUMN accounts.key_max_age_days IS 'A key that is older, in days, is told in the messages of its CSR and certificate.';
COMMENT ON COLUMN accounts.ca_quota IS 'How many CAs the account may hold; NULL is the bound of the list, 1000.';
COMMENT ON COLUMN accounts.csr_subject IS 'What `keystead csr create` takes for the subject where it is not told: country, state, locality, organization.';
COMMENT ON COLUMN accounts.enforce_twofactor IS 'Kept and given back for clients; there is no second factor here.';

CREATE TABLE zones (
    id uuid NOT NULL,
    account_id uuid NOT NULL,
    name text NOT NULL,
    type text NOT NULL DEFAULT 'full',
    paused boolean NOT NULL DEFAULT false,
    csrs_enabled boolean NOT NULL DEFAULT true,
    csr_quota integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    certificate_quota integer,
    sent_name text,
    vanity_name_servers text[] NOT NULL DEFAULT '{}',
    CONSTRAINT zones_pkey PRIMARY KEY (id),
    CONSTRAINT zones_account_id_id_key UNIQUE (account_id, id),
    CONSTRAINT zones_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT zones_name_check CHECK (length(name) BETWEEN 1 AND 253),
    CONSTRAINT zones_type_check CHECK (type IN ('full', 'partial', 'secondary', 'internal')),
    CONSTRAINT zones_csr_quota_check CHECK (csr_quota >= 0),
    CONSTRAINT zones_certificate_quota_check CHECK (certificate_quota >= 0),
    CONSTRAINT zones_sent_name_check CHECK (length(sent_name) BETWEEN 1 AND 253)
);
CREATE UNIQUE INDEX zones_account_id_name_key ON zones (account_id, name) WHERE deleted_at IS NULL;
CREATE INDEX zones_deleted_idx ON zones (account_id, name, deleted_at) WHERE deleted_at IS NOT NULL;
COMMENT ON TABLE zones IS 'Domains of an account; each has its own list of custom CSRs.';
COMMENT ON COLUMN zones.csr_quota IS 'How many custom CSRs the zone''s list may hold; NULL is no bound.';
COMMENT ON COLUMN zones.certificate_quota IS 'How many custom certificates the zone may hold; NULL is no bound.';
COMMENT ON COLUMN zones.deleted_at IS 'Set instead of deleting the row, so that callers of its account still get 404/7003 and all others 403.';
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

CREATE TABLE users (
    id uuid NOT NULL,
    email text NOT NULL,
    key_digest bytea,
    key_pepper_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_email_check CHECK (length(email) BETWEEN 3 AND 254 AND email = lower(email)),
    CONSTRAINT users_email_key UNIQUE (email),
    CONSTRAINT users_key_digest_key UNIQUE (key_digest),
    CONSTRAINT users_key_check CHECK ((key_digest IS NULL) = (key_pepper_id IS NULL) AND length(key_digest) = 32)
);
COMMENT ON TABLE users IS 'People with a global key; what they may do is in memberships.';
COMMENT ON COLUMN users.key_digest IS 'HMAC-SHA-256 of the global key under the pepper key_pepper_id.';

CREATE TABLE memberships (
    user_id uuid NOT NULL,
    account_id uuid NOT NULL,
    role text NOT NULL,
    CONSTRAINT memberships_pkey PRIMARY KEY (user_id, account_id),
    CONSTRAINT memberships_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT memberships_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id) ON DELETE CASCADE,
    CONSTRAINT memberships_role_check CHECK (role IN ('administrator', 'read'))
);
COMMENT ON TABLE memberships IS 'What a user is in an account; it bounds the user''s global key and tokens.';

CREATE TABLE peppers (
    id uuid NOT NULL,
    kek_id text NOT NULL,
    wrapped_key bytea NOT NULL,
    ciphertext bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT peppers_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE peppers IS 'HMAC keys of tokens and global keys, sealed by the ring; the newest digests new ones, all recognize.';

CREATE TABLE tokens (
    id uuid NOT NULL,
    account_id uuid,
    user_id uuid,
    name text NOT NULL,
    status text NOT NULL DEFAULT 'active',
    digest bytea NOT NULL,
    pepper_id uuid NOT NULL,
    policies json NOT NULL,
    condition json,
    not_before timestamptz,
    expires_on timestamptz,
    issued_on timestamptz NOT NULL DEFAULT now(),
    modified_on timestamptz NOT NULL DEFAULT now(),
    not_before_text text,
    expires_on_text text,
    CONSTRAINT tokens_pkey PRIMARY KEY (id),
    CONSTRAINT tokens_digest_key UNIQUE (digest),
    CONSTRAINT tokens_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT tokens_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT tokens_pepper_id_fkey FOREIGN KEY (pepper_id) REFERENCES peppers (id),
    CONSTRAINT tokens_owner_check CHECK (num_nonnulls(account_id, user_id) = 1),
    CONSTRAINT tokens_name_check CHECK (length(name) BETWEEN 1 AND 120),
    CONSTRAINT tokens_status_check CHECK (status IN ('active', 'disabled')),
    CONSTRAINT tokens_digest_check CHECK (length(digest) = 32),
    CONSTRAINT tokens_times_check CHECK (length(not_before_text) <= 64 AND length(expires_on_text) <= 64)
);
ALTER TABLE users ADD CONSTRAINT users_key_pepper_id_fkey FOREIGN KEY (key_pepper_id) REFERENCES peppers (id);
CREATE INDEX tokens_account_id_idx ON tokens (account_id, issued_on, id) WHERE account_id IS NOT NULL;
CREATE INDEX tokens_user_id_idx ON tokens (user_id, issued_on, id) WHERE user_id IS NOT NULL;
COMMENT ON TABLE tokens IS 'API tokens, of an account or of a user; the value is shown once and never stored.';
COMMENT ON COLUMN tokens.digest IS 'HMAC-SHA-256 of the token under the pepper pepper_id.';
COMMENT ON COLUMN tokens.policies IS 'Cloudflare''s policies; json, not jsonb, because clients compare the text that comes back.';
COMMENT ON COLUMN tokens.condition IS 'Cloudflare''s condition.request_ip {in, not_in}.';
COMMENT ON COLUMN tokens.expires_on_text IS 'expires_on as it was sent, because clients compare the text; likewise not_before_text.';

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

CREATE TABLE failed_authentications (
    network cidr NOT NULL,
    minute timestamptz NOT NULL,
    count bigint NOT NULL,
    CONSTRAINT failed_authentications_pkey PRIMARY KEY (network, minute)
);
COMMENT ON TABLE failed_authentications IS 'Failed authentications of the last minutes, summed over all workers, until they are one row each in audit_log.';
COMMENT ON COLUMN failed_authentications.network IS 'The address, /32 or the /64 of IPv6; 0.0.0.0/0 when it is not known, ::/0 for more addresses than are counted apart.';

CREATE TABLE keks (
    id text NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz,
    CONSTRAINT keks_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE keks IS 'Which KEKs may wrap: the ids alone, their secrets are in the ring. Nothing is sealed under a retired one.';

CREATE TABLE private_keys (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    key_type text NOT NULL,
    spki_sha256 bytea NOT NULL,
    generated boolean NOT NULL,
    kek_id text NOT NULL,
    wrapped_key bytea NOT NULL,
    ciphertext bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT private_keys_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT private_keys_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT private_keys_key_type_check CHECK (key_type ~ '^(rsa[1-9][0-9]{3}|p256v1|p384|p521)$'),
    CONSTRAINT private_keys_spki_sha256_check CHECK (length(spki_sha256) = 32)
);
CREATE UNIQUE INDEX private_keys_generated_key ON private_keys (account_id, spki_sha256) WHERE generated;
CREATE INDEX private_keys_kek_id_idx ON private_keys (kek_id);
COMMENT ON TABLE private_keys IS 'Sealed private keys; only app/keyring.py names these columns. The format is drawn in docs/custody.md.';
COMMENT ON COLUMN private_keys.spki_sha256 IS 'SHA-256 of the DER SubjectPublicKeyInfo; part of what the seal authenticates.';
COMMENT ON COLUMN private_keys.generated IS 'Made here rather than uploaded: such a key is used once in an account.';
COMMENT ON COLUMN private_keys.kek_id IS 'Which KEK of the ring wraps the data key.';
COMMENT ON COLUMN private_keys.wrapped_key IS 'The data key, sealed by the KEK.';
COMMENT ON COLUMN private_keys.ciphertext IS 'The PKCS#8 key, sealed by the data key.';

CREATE TABLE custom_csrs (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    zone_id uuid,
    scope_id uuid NOT NULL GENERATED ALWAYS AS (COALESCE(zone_id, account_id)) STORED,
    key_id uuid NOT NULL,
    key_type text NOT NULL,
    name text,
    description text,
    country text NOT NULL,
    state text NOT NULL,
    locality text NOT NULL,
    organization text NOT NULL,
    organizational_unit text,
    common_name text NOT NULL,
    sans text[] NOT NULL,
    csr text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT custom_csrs_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT custom_csrs_zone_fkey FOREIGN KEY (account_id, zone_id) REFERENCES zones (account_id, id),
    CONSTRAINT custom_csrs_key_fkey FOREIGN KEY (account_id, key_id) REFERENCES private_keys (account_id, id),
    CONSTRAINT custom_csrs_key_type_check CHECK (key_type IN ('rsa2048', 'p256v1')),
    CONSTRAINT custom_csrs_name_check CHECK (length(name) BETWEEN 1 AND 255),
    CONSTRAINT custom_csrs_description_check CHECK (length(description) BETWEEN 1 AND 1024),
    CONSTRAINT custom_csrs_country_check CHECK (country ~ '^[A-Z]{2}$'),
    CONSTRAINT custom_csrs_state_check CHECK (length(state) BETWEEN 1 AND 128),
    CONSTRAINT custom_csrs_locality_check CHECK (length(locality) BETWEEN 1 AND 128),
    CONSTRAINT custom_csrs_organization_check CHECK (length(organization) BETWEEN 1 AND 64),
    CONSTRAINT custom_csrs_organizational_unit_check CHECK (length(organizational_unit) BETWEEN 1 AND 64),
    CONSTRAINT custom_csrs_common_name_check CHECK (length(common_name) BETWEEN 1 AND 64),
    CONSTRAINT custom_csrs_sans_check CHECK (cardinality(sans) BETWEEN 1 AND 150)
);
CREATE UNIQUE INDEX custom_csrs_key_id_key ON custom_csrs (account_id, key_id);
CREATE INDEX custom_csrs_created_at_idx ON custom_csrs (account_id, scope_id, created_at, id);
CREATE INDEX custom_csrs_name_idx ON custom_csrs (account_id, scope_id, name COLLATE "C", id);
COMMENT ON TABLE custom_csrs IS 'Custom CSRs with their inputs byte for byte; the key is elsewhere, in private_keys.';
COMMENT ON COLUMN custom_csrs.scope_id IS 'The list it is in: its zone''s, or else its account''s. NOT NULL so that one index serves both.';
COMMENT ON COLUMN custom_csrs.csr IS 'PEM with a trailing newline.';

CREATE TABLE csr_counts (
    account_id uuid NOT NULL,
    scope_id uuid NOT NULL,
    slot smallint NOT NULL,
    count bigint NOT NULL,
    CONSTRAINT csr_counts_pkey PRIMARY KEY (account_id, scope_id, slot)
) WITH (fillfactor = 50);
COMMENT ON TABLE csr_counts IS 'How many custom CSRs each list has: the sum of its slots, of which each writer takes any one.';

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
CREATE INDEX custom_certificates_sha256_idx ON custom_certificates (account_id, zone_id, sha256);
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

CREATE TABLE renewal_rules (
    account_id uuid NOT NULL,
    certificate_id uuid NOT NULL,
    zone_id uuid NOT NULL,
    ca_id uuid,
    days_before integer,
    percent_before integer,
    new_key boolean NOT NULL DEFAULT true,
    state text NOT NULL DEFAULT 'scheduled',
    problem text,
    failures integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT to_timestamp(0),
    csr_id uuid,
    begun_at timestamptz,
    previous_csr_id uuid,
    previous_ends timestamptz,
    renewed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT renewal_rules_pkey PRIMARY KEY (account_id, certificate_id),
    CONSTRAINT renewal_rules_certificate_fkey FOREIGN KEY (account_id, certificate_id)
        REFERENCES custom_certificates (account_id, id) ON DELETE CASCADE,
    CONSTRAINT renewal_rules_before_check CHECK (num_nonnulls(days_before, percent_before) = 1),
    CONSTRAINT renewal_rules_days_before_check CHECK (days_before BETWEEN 1 AND 3650),
    CONSTRAINT renewal_rules_percent_before_check CHECK (percent_before BETWEEN 1 AND 50),
    CONSTRAINT renewal_rules_state_check CHECK (state IN ('scheduled', 'waiting', 'failing', 'stopped')),
    CONSTRAINT renewal_rules_problem_check CHECK (length(problem) BETWEEN 1 AND 500),
    CONSTRAINT renewal_rules_failures_check CHECK (failures >= 0),
    CONSTRAINT renewal_rules_previous_check CHECK ((previous_csr_id IS NULL) = (previous_ends IS NULL))
);
CREATE INDEX renewal_rules_due_at_idx ON renewal_rules (due_at);
COMMENT ON TABLE renewal_rules IS 'How a certificate is renewed by itself. A rule names its CA and CSRs without keeping them.';
COMMENT ON COLUMN renewal_rules.ca_id IS 'The CA of the account that signs; NULL where a CA outside does, and the CSR waits for it.';
COMMENT ON COLUMN renewal_rules.percent_before IS 'Of the lifetime, in place of days.';
COMMENT ON COLUMN renewal_rules.due_at IS 'When a server looks at it next: after the certificate has become another at once, and while one server works on it not before it should have ended.';
COMMENT ON COLUMN renewal_rules.csr_id IS 'The CSR that the rule made last: of the next certificate, and then of the present one.';
COMMENT ON COLUMN renewal_rules.begun_at IS 'What the CA has signed for csr_id since then is put in place, and not signed again.';
COMMENT ON COLUMN renewal_rules.previous_csr_id IS 'The CSR before, made by the rule too; it is deleted with its key after previous_ends.';

CREATE TABLE key_deliveries (
    account_id uuid NOT NULL,
    key_id uuid NOT NULL,
    token_id uuid NOT NULL,
    certificate_id uuid NOT NULL,
    count bigint NOT NULL DEFAULT 0,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT key_deliveries_pkey PRIMARY KEY (account_id, key_id, token_id),
    CONSTRAINT key_deliveries_key_fkey FOREIGN KEY (account_id, key_id)
        REFERENCES private_keys (account_id, id) ON DELETE CASCADE,
    CONSTRAINT key_deliveries_count_check CHECK (count >= 0)
);
CREATE INDEX key_deliveries_token_id_idx ON key_deliveries (token_id);
COMMENT ON TABLE key_deliveries IS 'Which keys have left for which delivery token: the first time is in audit_log too, later ones are counted here.';
COMMENT ON COLUMN key_deliveries.certificate_id IS 'The certificate with which the key left first.';
COMMENT ON COLUMN key_deliveries.count IS 'How often it left, up to some seconds ago.';

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
    name text,
    not_after_policy text NOT NULL DEFAULT 'refuse',
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
    CONSTRAINT certificate_authorities_spki_sha256_check CHECK (length(spki_sha256) = 32),
    CONSTRAINT certificate_authorities_name_check CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$'),
    CONSTRAINT certificate_authorities_not_after_policy_check CHECK (not_after_policy IN ('refuse', 'truncate'))
);
CREATE UNIQUE INDEX certificate_authorities_name_key ON certificate_authorities (account_id, name);
CREATE UNIQUE INDEX certificate_authorities_key_id_key ON certificate_authorities (account_id, key_id);
CREATE INDEX certificate_authorities_parent_id_idx ON certificate_authorities (account_id, parent_id);
CREATE INDEX certificate_authorities_created_at_idx ON certificate_authorities (account_id, created_at, id);
CREATE INDEX certificate_authorities_id_idx ON certificate_authorities (id);
CREATE INDEX certificate_authorities_spki_sha256_idx ON certificate_authorities (spki_sha256);
COMMENT ON TABLE certificate_authorities IS 'CAs of accounts. Without a certificate one is pending; its certificates are versions in ca_certificates.';
COMMENT ON COLUMN certificate_authorities.parent_id IS 'The CA here that signed it; NULL for roots, and for what was signed outside.';
COMMENT ON COLUMN certificate_authorities.max_path_length IS 'What was asked for; -1 is no bound. What holds is in the certificate.';
COMMENT ON COLUMN certificate_authorities.spki_sha256 IS 'SHA-256 of the DER SubjectPublicKeyInfo; whose key may be opened for it.';
COMMENT ON COLUMN certificate_authorities.name IS 'For people and for the newer calls of Infisical''s API; NULL until one was given.';
COMMENT ON COLUMN certificate_authorities.not_after_policy IS 'Whether a leaf that would outlive the CA is refused, or ends with it.';

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
    root_subject_sha256 bytea,
    root_key_id bytea,
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
CREATE INDEX ca_certificates_root_subject_idx ON ca_certificates (account_id, root_subject_sha256);
COMMENT ON TABLE ca_certificates IS 'The certificates of a CA; the highest version is the one it signs under.';
COMMENT ON COLUMN ca_certificates.path_length IS 'Of basicConstraints (RFC 5280 section 4.2.1.9); NULL is no bound.';
COMMENT ON COLUMN ca_certificates.chain IS 'PEM: what is above it, up to and with the root; empty for a root.';
COMMENT ON COLUMN ca_certificates.root IS 'PEM of the root, which the account''s own certificates are checked against.';
COMMENT ON COLUMN ca_certificates.root_subject_sha256 IS 'SHA-256 of the DER of the root''s subject; NULL where an earlier release wrote the row, or the root cannot be read.';
COMMENT ON COLUMN ca_certificates.root_key_id IS 'The root''s subjectKeyIdentifier, where it has one.';

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
    profile_id uuid,
    application_id uuid,
    key_made_here boolean NOT NULL DEFAULT false,
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
CREATE INDEX issued_certificates_created_at_idx ON issued_certificates (account_id, created_at, id);
CREATE INDEX issued_certificates_id_idx ON issued_certificates (id);
COMMENT ON TABLE issued_certificates IS 'What CAs signed, stored before anybody sees it; a row without pem is of an earlier release, and says what was meant.';
COMMENT ON COLUMN issued_certificates.issuer_id IS 'The version of the CA''s certificate it was signed under; NULL for a root''s first.';
COMMENT ON COLUMN issued_certificates.serial IS '20 octets in hex, the top two bits 01; unique in the account, and so in the CA.';
COMMENT ON COLUMN issued_certificates.subject IS 'The distinguished name as RFC 4514 writes it.';
COMMENT ON COLUMN issued_certificates.profile_id IS 'The profile it was issued by, which may have been deleted since; NULL for a request to the CA itself.';
COMMENT ON COLUMN issued_certificates.key_made_here IS 'The key was made here and handed out once: a renewal makes another one.';
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
ALTER TABLE crls ALTER COLUMN der SET STORAGE EXTERNAL;
COMMENT ON TABLE crls IS 'The CRL of each CA as it was signed last; a row without der has not been signed yet.';
COMMENT ON COLUMN crls.number IS 'CRLNumber (RFC 5280 section 5.2.3): each signing takes the next.';

CREATE TABLE last_crls (
    account_id uuid NOT NULL,
    ca_id uuid NOT NULL,
    der bytea NOT NULL,
    next_update timestamptz NOT NULL,
    CONSTRAINT last_crls_pkey PRIMARY KEY (account_id, ca_id)
);
CREATE INDEX last_crls_ca_id_idx ON last_crls (ca_id);
COMMENT ON TABLE last_crls IS 'What CAs that were deleted by force have said last: that all they signed is revoked.';

CREATE TABLE certificate_policies (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    description text,
    rules json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT certificate_policies_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT certificate_policies_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id) ON DELETE CASCADE,
    CONSTRAINT certificate_policies_name_key UNIQUE (account_id, name)
);
CREATE INDEX certificate_policies_id_idx ON certificate_policies (id);
COMMENT ON TABLE certificate_policies IS 'What a certificate may say that is issued by a profile.';
COMMENT ON COLUMN certificate_policies.rules IS 'As they were sent; json, not jsonb, because clients compare what comes back.';

CREATE TABLE certificate_profiles (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    slug text NOT NULL,
    description text,
    ca_id uuid NOT NULL,
    policy_id uuid NOT NULL,
    defaults json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT certificate_profiles_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT certificate_profiles_ca_fkey FOREIGN KEY (account_id, ca_id)
        REFERENCES certificate_authorities (account_id, id),
    CONSTRAINT certificate_profiles_policy_fkey FOREIGN KEY (account_id, policy_id)
        REFERENCES certificate_policies (account_id, id),
    CONSTRAINT certificate_profiles_slug_key UNIQUE (account_id, slug)
);
CREATE INDEX certificate_profiles_id_idx ON certificate_profiles (id);
CREATE INDEX certificate_profiles_ca_id_idx ON certificate_profiles (account_id, ca_id);
CREATE INDEX certificate_profiles_policy_id_idx ON certificate_profiles (account_id, policy_id);
COMMENT ON TABLE certificate_profiles IS 'A CA, what it may sign, and what a request need not say: the roles by which certificates are issued.';

CREATE TABLE applications (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    name text NOT NULL,
    description text,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT applications_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT applications_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id) ON DELETE CASCADE,
    CONSTRAINT applications_name_key UNIQUE (account_id, name)
);
CREATE INDEX applications_id_idx ON applications (id);
COMMENT ON TABLE applications IS 'What certificates are for; each has the profiles that it may use.';

CREATE TABLE application_profiles (
    account_id uuid NOT NULL,
    application_id uuid NOT NULL,
    profile_id uuid NOT NULL,
    enrollment_id uuid,
    auto_renew boolean NOT NULL DEFAULT false,
    renew_before_days integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    modified_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT application_profiles_pkey PRIMARY KEY (account_id, application_id, profile_id),
    CONSTRAINT application_profiles_application_fkey FOREIGN KEY (account_id, application_id)
        REFERENCES applications (account_id, id),
    CONSTRAINT application_profiles_profile_fkey FOREIGN KEY (account_id, profile_id)
        REFERENCES certificate_profiles (account_id, id),
    CONSTRAINT application_profiles_renew_before_days_check CHECK (renew_before_days BETWEEN 1 AND 3650)
);
CREATE INDEX application_profiles_profile_id_idx ON application_profiles (account_id, profile_id);
COMMENT ON TABLE application_profiles IS 'Which profiles an application may use, and how its clients renew.';
COMMENT ON COLUMN application_profiles.enrollment_id IS 'NULL where the API does not issue for this pair.';

CREATE TABLE idempotency_keys (
    account_id uuid NOT NULL,
    caller_id uuid NOT NULL,
    digest bytea NOT NULL,
    body_sha256 bytea NOT NULL,
    resource_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (account_id, caller_id, digest),
    CONSTRAINT idempotency_keys_digest_check CHECK (length(digest) = 32 AND length(body_sha256) = 32)
);
CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at);
COMMENT ON TABLE idempotency_keys IS 'What a request with an Idempotency-Key made, for 24 hours; never an answer body.';
COMMENT ON COLUMN idempotency_keys.digest IS 'SHA-256 of method, path and key, each followed by a newline.';
COMMENT ON COLUMN idempotency_keys.body_sha256 IS 'SHA-256 of the raw request body: the same key with another body is a conflict.';

CREATE TABLE audit_log (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    action text NOT NULL,
    resource_type text NOT NULL,
    resource_id uuid NOT NULL,
    zone_id uuid,
    actor text NOT NULL,
    actor_id uuid,
    actor_name text,
    actor_email text,
    address inet,
    request_id text NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    user_agent text,
    user_id uuid,
    result text NOT NULL DEFAULT 'success',
    status smallint,
    count bigint NOT NULL DEFAULT 1,
    CONSTRAINT audit_log_pkey PRIMARY KEY (account_id, id),
    CONSTRAINT audit_log_action_check CHECK (action ~ '^[a-z][a-z-]*$')
);
CREATE INDEX audit_log_at_idx ON audit_log (account_id, at, id);
COMMENT ON TABLE audit_log IS 'Every change, written in the transaction that makes it, and every attempt that was denied. No bodies and no secrets.';
COMMENT ON COLUMN audit_log.account_id IS 'The account that was acted on; all zeros for what belongs to no account, such as users.';
COMMENT ON COLUMN audit_log.actor_name IS 'The token''s name, or the operating system user of the command line.';
COMMENT ON COLUMN audit_log.user_id IS 'Whose global key or token acted; NULL for a token of an account.';
COMMENT ON COLUMN audit_log.result IS 'success, or failure for what was denied.';
COMMENT ON COLUMN audit_log.status IS 'The HTTP status of the answer; NULL for the command line.';
COMMENT ON COLUMN audit_log.count IS 'How many attempts the row stands for: failed authentications are one row an address and minute.';

INSERT INTO schema_version (version) VALUES (12);
