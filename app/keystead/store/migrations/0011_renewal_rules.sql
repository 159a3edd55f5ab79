-- Certificates are renewed by themselves.
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
    CONSTRAINT renewal_rules_before_check CHECK (num_nonnulls(days_before, percent_before) = 1),
    CONSTRAINT renewal_rules_days_before_check CHECK (days_before BETWEEN 1 AND 3650),
    CONSTRAINT renewal_rules_percent_before_check CHECK (percent_before BETWEEN 1 AND 50),
    CONSTRAINT renewal_rules_state_check CHECK (state IN ('scheduled', 'waiting', 'failing', 'stopped')),
    CONSTRAINT renewal_rules_problem_check CHECK (length(problem) BETWEEN 1 AND 500),
    CONSTRAINT renewal_rules_failures_check CHECK (failures >= 0),
    CONSTRAINT renewal_rules_previous_check CHECK ((previous_csr_id IS NULL) = (previous_ends IS NULL))
);
ALTER TABLE renewal_rules ADD CONSTRAINT renewal_rules_certificate_fkey FOREIGN KEY (account_id, certificate_id)
    REFERENCES custom_certificates (account_id, id) ON DELETE CASCADE;
CREATE INDEX renewal_rules_due_at_idx ON renewal_rules (due_at);
COMMENT ON TABLE renewal_rules IS 'How a certificate is renewed by itself. A rule names its CA and CSRs without keeping them.';
COMMENT ON COLUMN renewal_rules.ca_id IS 'The CA of the account that signs; NULL where a CA outside does, and the CSR waits for it.';
COMMENT ON COLUMN renewal_rules.percent_before IS 'Of the lifetime, in place of days.';
COMMENT ON COLUMN renewal_rules.due_at IS 'When a server looks at it next: after the certificate has become another at once, and while one server works on it not before it should have ended.';
COMMENT ON COLUMN renewal_rules.csr_id IS 'The CSR that the rule made last: of the next certificate, and then of the present one.';
COMMENT ON COLUMN renewal_rules.begun_at IS 'What the CA has signed for csr_id since then is put in place, and not signed again.';
COMMENT ON COLUMN renewal_rules.previous_csr_id IS 'The CSR before, made by the rule too; it is deleted with its key after previous_ends.';
