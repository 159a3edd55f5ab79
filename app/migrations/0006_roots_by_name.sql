-- An upload is checked against the roots of the names that it has, and not against all that its account has.
ALTER TABLE ca_certificates ADD COLUMN root_subject_sha256 bytea, ADD COLUMN root_key_id bytea;
COMMENT ON COLUMN ca_certificates.root_subject_sha256 IS 'SHA-256 of the DER of the root''s subject; NULL where an earlier release wrote the row, or the root cannot be read.';
COMMENT ON COLUMN ca_certificates.root_key_id IS 'The root''s subjectKeyIdentifier, where it has one.';

CREATE FUNCTION pg_temp.subject_sha256(der bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    at integer := 0;
    passed integer := -2;
    head integer;
    size integer;
    is_version boolean;
BEGIN
    -- Into Certificate and TBSCertificate, then past version, serial, signature, issuer and validity (RFC 5280 4.1).
    LOOP
        head := 2;
        size := get_byte(der, at + 1);
        IF size > 127 THEN
            head := size - 126;
            size := 0;
            FOR i IN 2 .. head - 1 LOOP
                size := size * 256 + get_byte(der, at + i);
            END LOOP;
        END IF;
        EXIT WHEN passed = 4;
        is_version := get_byte(der, at) = 160;
        at := at + head + CASE WHEN passed < 0 THEN 0 ELSE size END;
        passed := passed + CASE WHEN is_version THEN 0 ELSE 1 END;
    END LOOP;
    RETURN sha256(substring(der FROM at + 1 FOR head + size));
END $$;

-- The octets after the extension's id, an OCTET STRING in an OCTET STRING; NULL where there is none.
CREATE FUNCTION pg_temp.key_id(der bytea) RETURNS bytea LANGUAGE sql AS $$
    SELECT substring(der FROM at + 9 FOR get_byte(der, at + 7))
    FROM (SELECT position('\x0603551d0e04'::bytea IN der) AS at) AS found WHERE at > 0
$$;

DO $$
DECLARE
    certificate record;
    der bytea;
BEGIN
    FOR certificate IN SELECT account_id, id, root FROM ca_certificates LOOP
        BEGIN
            der := decode(split_part(certificate.root, '-----', 3), 'base64');
            UPDATE ca_certificates
            SET root_subject_sha256 = pg_temp.subject_sha256(der), root_key_id = pg_temp.key_id(der)
            WHERE account_id = certificate.account_id AND id = certificate.id;
        EXCEPTION WHEN OTHERS THEN
            -- A root that cannot be read stays without its name, and keeps nobody from the upgrade.
            NULL;
        END;
    END LOOP;
END $$;

CREATE INDEX ca_certificates_root_subject_idx ON ca_certificates (account_id, root_subject_sha256);
