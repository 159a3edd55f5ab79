-- An upload is checked against the roots whose names stand in it, and no longer against all roots of its account.
ALTER TABLE ca_certificates ADD COLUMN root_subject_sha256 bytea, ADD COLUMN root_key_id bytea;
COMMENT ON COLUMN ca_certificates.root_subject_sha256 IS 'SHA-256 of the DER of the root''s subject; NULL where an earlier release wrote the row, or the root cannot be read.';
COMMENT ON COLUMN ca_certificates.root_key_id IS 'The root''s subjectKeyIdentifier, where it has one.';

CREATE FUNCTION pg_temp.of_root(pem text, OUT subject_sha256 bytea, OUT key_id bytea) LANGUAGE plpgsql AS $$
DECLARE
    der bytea := decode(split_part(pem, '-----', 3), 'base64');
    at integer := position('\x0603551d0e04'::bytea IN der);
    passed integer := -2;
    head integer;
    size integer;
    is_version boolean;
BEGIN
    -- After the id of the extension stands an OCTET STRING in another one.
    IF at > 0 THEN
        key_id := substring(der FROM at + 9 FOR get_byte(der, at + 7));
    END IF;
    at := 0;
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
    subject_sha256 := sha256(substring(der FROM at + 1 FOR head + size));
END $$;

-- A root that cannot be read keeps nobody from the upgrade.
CREATE FUNCTION pg_temp.of_root_or_null(pem text, OUT subject_sha256 bytea, OUT key_id bytea) LANGUAGE plpgsql AS $$
BEGIN
    SELECT * INTO subject_sha256, key_id FROM pg_temp.of_root(pem);
EXCEPTION WHEN OTHERS THEN
    NULL;
END $$;

UPDATE ca_certificates SET (root_subject_sha256, root_key_id) = (SELECT * FROM pg_temp.of_root_or_null(root));
CREATE INDEX ca_certificates_root_subject_idx ON ca_certificates (account_id, root_subject_sha256);
