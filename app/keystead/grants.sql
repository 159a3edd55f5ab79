-- The database and its schema: nothing that everybody may do by default, such as making temporary tables.
REVOKE ALL ON DATABASE keystead FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CONNECT ON DATABASE keystead TO keystead_api;
GRANT USAGE ON SCHEMA public TO keystead_api;
-- Its version is looked at before anything else; only `keystead migrate` changes it.
GRANT SELECT ON schema_version TO keystead_api;
-- Tenants make, rename and delete accounts and zones; quotas, switches and name policies are the operator's, and
-- what is new begins with them. A column that may be changed is also what locking a row takes: for quotas, and against
-- a deletion at the same moment.
GRANT SELECT, DELETE, UPDATE (name, enforce_twofactor, abuse_contact_email, modified_at), INSERT (id, name, slug,
    name_policy, csrs_enabled, csr_quota, ca_quota, key_max_age_days, enforce_twofactor, abuse_contact_email) ON accounts TO keystead_api;
GRANT SELECT, DELETE, UPDATE (type, paused, vanity_name_servers, modified_at, deleted_at), INSERT (id, account_id, name,
    sent_name, type, paused, vanity_name_servers, csrs_enabled, csr_quota, certificate_quota) ON zones TO keystead_api;
-- Who was a member of a deleted account is told that it is gone.
GRANT SELECT, INSERT ON deleted_scopes TO keystead_api;
-- Users are managed by the operator; the creator of an account becomes its administrator. Digests of credentials
-- change after a new pepper.
GRANT SELECT, UPDATE (key_digest, key_pepper_id) ON users TO keystead_api;
GRANT SELECT, INSERT ON memberships TO keystead_api;
GRANT SELECT, DELETE, INSERT (id, account_id, user_id, name, status, digest, pepper_id, policies, condition, not_before,
    not_before_text, expires_on, expires_on_text), UPDATE (name, policies, condition, not_before, not_before_text,
    expires_on, expires_on_text, status, digest, pepper_id, modified_on) ON tokens TO keystead_api;
-- KEKs and peppers are the operator's.
GRANT SELECT ON keks TO keystead_api;
GRANT SELECT ON peppers TO keystead_api;
-- Delivery tokens are made and revoked by the operator; their digests change after a new pepper.
GRANT SELECT, UPDATE (digest, pepper_id, modified_at) ON delivery_tokens TO keystead_api;
-- Which keys have left for which of these tokens is written before they do; the rows go with the keys.
GRANT SELECT, INSERT, UPDATE (count, last_at) ON key_deliveries TO keystead_api;
-- Logins create access tokens; they are renewed and revoked, and expired ones are deleted.
GRANT SELECT, INSERT, DELETE, UPDATE (expires_at) ON access_tokens TO keystead_api;
-- Sealed keys come and go, and are never changed; `keystead keys rotate` works as the owner.
GRANT SELECT, INSERT, DELETE ON private_keys TO keystead_api;
-- CSRs are never changed either; their number is kept in csr_counts.
GRANT SELECT, INSERT, DELETE ON custom_csrs TO keystead_api;
GRANT SELECT, INSERT, DELETE, UPDATE (count) ON csr_counts TO keystead_api;
-- A certificate is renewed in place, but stays in its zone.
GRANT SELECT, INSERT, DELETE, UPDATE (key_id, custom_csr_id, type, bundle_method, geo_label, policy, deploy, priority,
    sha256, hosts, issuer, signature, not_before, not_after, chain, uploaded_at, modified_at)
    ON custom_certificates TO keystead_api;
-- The versions before a renewal; only the operator reads them, and they are deleted with the certificate.
GRANT INSERT ON certificate_history TO keystead_api;
-- How a certificate is renewed by itself; a rule stays with its certificate, and goes with it.
GRANT SELECT, DELETE, UPDATE (ca_id, days_before, percent_before, new_key, state, problem, failures, due_at, csr_id,
    begun_at, previous_csr_id, previous_ends, renewed_at), INSERT (account_id, certificate_id, zone_id, ca_id,
    days_before, percent_before, new_key) ON renewal_rules TO keystead_api;
-- A CA keeps its key and its name.
GRANT SELECT, INSERT, DELETE, UPDATE (parent_id, disabled, requires_template, name, not_after_policy, modified_at)
    ON certificate_authorities TO keystead_api;
-- The certificates of a CA are versions, never changed; they are deleted with the CA.
GRANT SELECT, INSERT ON ca_certificates TO keystead_api;
-- An issued certificate is stored as it was signed, and may be revoked; it is deleted with the CA.
GRANT SELECT, INSERT, UPDATE (revoked_at, revocation_reason, modified_at) ON issued_certificates TO keystead_api;
-- What a CA that was deleted by force has said last; it is never changed, and deleted when it is outlived.
GRANT SELECT, INSERT, DELETE ON last_crls TO keystead_api;
-- What may be issued, by which CA and for what; a policy keeps its account, a profile its CA.
GRANT SELECT, INSERT, DELETE, UPDATE (name, description, rules, modified_at) ON certificate_policies TO keystead_api;
GRANT SELECT, INSERT, DELETE, UPDATE (slug, description, policy_id, defaults, modified_at)
    ON certificate_profiles TO keystead_api;
GRANT SELECT, INSERT, DELETE, UPDATE (name, description, modified_at) ON applications TO keystead_api;
GRANT SELECT, INSERT, DELETE, UPDATE (enrollment_id, auto_renew, renew_before_days, modified_at)
    ON application_profiles TO keystead_api;
-- One CRL for each CA, replaced by the next; it is deleted with the CA.
GRANT SELECT, INSERT, UPDATE (number, der, this_update, next_update) ON crls TO keystead_api;
-- The resource that a request with this key created, for 24 hours.
GRANT SELECT, INSERT, DELETE, UPDATE (body_sha256, resource_id, created_at) ON idempotency_keys TO keystead_api;
-- Failed authentications are counted for a minute, before they are one row of the audit log.
GRANT SELECT, INSERT, DELETE, UPDATE (count) ON failed_authentications TO keystead_api;
-- The audit log is written and read, and never changed or deleted; the time of a row is the database's.
GRANT SELECT, INSERT (account_id, id, action, resource_type, resource_id, zone_id, actor, actor_id, actor_name,
    actor_email, address, request_id, method, path, user_agent, user_id, status, result, count)
    ON audit_log TO keystead_api;
