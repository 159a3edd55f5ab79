-- Before a CA signs, those above it are looked for by their keys, also in other accounts.
CREATE INDEX certificate_authorities_spki_sha256_idx ON certificate_authorities (spki_sha256);

-- CRLs hardly shrink, and trying it took most of the time of writing a long one.
ALTER TABLE crls ALTER COLUMN der SET STORAGE EXTERNAL;
