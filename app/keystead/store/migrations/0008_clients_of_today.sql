-- What clients send comes back, whoever was a member of a deleted account is told so, and a zone may have a certificate
-- twice.
ALTER TABLE accounts ADD COLUMN enforce_twofactor boolean NOT NULL DEFAULT false;
ALTER TABLE accounts ADD COLUMN abuse_contact_email text;
ALTER TABLE accounts
    ADD CONSTRAINT accounts_abuse_contact_email_check CHECK (length(abuse_contact_email) BETWEEN 3 AND 254);
COMMENT ON COLUMN accounts.enforce_twofactor IS 'Kept and given back for clients; there is no second factor here.';

ALTER TABLE accounts ADD COLUMN csr_subject jsonb NOT NULL DEFAULT '{}';
ALTER TABLE accounts ADD CONSTRAINT accounts_csr_subject_check
    CHECK (jsonb_typeof(csr_subject) = 'object' AND length(csr_subject::text) <= 2000);
COMMENT ON COLUMN accounts.csr_subject IS 'What `keystead csr create` takes for the subject where it is not told: country, state, locality, organization.';

ALTER TABLE zones ADD COLUMN sent_name text;
ALTER TABLE zones ADD COLUMN vanity_name_servers text[] NOT NULL DEFAULT '{}';
ALTER TABLE zones ADD CONSTRAINT zones_sent_name_check CHECK (length(sent_name) BETWEEN 1 AND 253);
CREATE INDEX zones_deleted_idx ON zones (account_id, name, deleted_at) WHERE deleted_at IS NOT NULL;
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

-- Profiles say what may be issued, and a CA that is deleted by force leaves a last CRL.
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

-- Certificates know the profile and the application that they were issued by, and are listed by their age.
ALTER TABLE issued_certificates ADD COLUMN profile_id uuid;
ALTER TABLE issued_certificates ADD COLUMN application_id uuid;
ALTER TABLE issued_certificates ADD COLUMN key_made_here boolean NOT NULL DEFAULT false;
CREATE INDEX issued_certificates_created_at_idx ON issued_certificates (account_id, created_at, id);
CREATE INDEX issued_certificates_id_idx ON issued_certificates (id);
COMMENT ON COLUMN issued_certificates.profile_id IS 'The profile it was issued by, which may have been deleted since; NULL for a request to the CA itself.';
COMMENT ON COLUMN issued_certificates.key_made_here IS 'The key was made here and handed out once: a renewal makes another one.';

COMMENT ON TABLE issued_certificates IS 'What CAs signed, stored before anybody sees it; a row without pem is of an earlier release, and says what was meant.';
