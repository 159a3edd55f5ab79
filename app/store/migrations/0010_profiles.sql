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
