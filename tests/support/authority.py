"""A certificate authority made in the test, by OpenSSL or by hand, for CSRs that came from the server."""

import base64
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def pem(*certificates: x509.Certificate) -> str:
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode() for c in certificates)


def bare_pem(der: bytes) -> str:
    """Any bytes as a CERTIFICATE block."""
    return f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"


def patched(certificate: x509.Certificate, old: bytes, new: bytes) -> str:
    """A certificate with some of its bytes replaced, for what no tool makes; its signature is wrong."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert old in der
    return bare_pem(der.replace(old, new, 1))


def key_pem(key: Key, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8) -> str:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


class Authority(msgspec.Struct):
    """A CA; `above` are the certificates between it and its root, itself first, the root left out."""

    key: Key
    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...] = ()

    def intermediate(self, name: str = "Intermediate CA", **changes: object) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        made = self.sign(key.public_key(), subject(name), ca=True, **changes)  # type: ignore[arg-type]
        return Authority(key, made, (made, *self.above))

    def of_csr(self, csr: str, **changes: object) -> x509.Certificate:
        """What this CA makes of a CSR: its subject, key and SANs."""
        request = x509.load_pem_x509_csr(csr.encode())
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = changes.pop("hosts", names.get_values_for_type(x509.DNSName))
        return self.sign(request.public_key(), request.subject, hosts=hosts, **changes)  # type: ignore[arg-type]

    def by_openssl(self, csr: str, *words: str, extensions: str = "") -> str:
        """What OpenSSL makes of a CSR with this CA: for what a library refuses to make."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, text in (
                ("csr", csr),
                ("ca", pem(self.certificate)),
                ("key", key_pem(self.key)),
                ("ext", extensions or "basicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\n"),
            ):
                (folder / file).write_text(text)
            signing = ("x509", "-req", "-in", folder / "csr", "-CA", folder / "ca", "-CAkey", folder / "key")
            return openssl(*signing, "-extfile", folder / "ext", "-copy_extensions", "copy", *words)

    def cross(self, other: "Authority") -> x509.Certificate:
        """A certificate of this CA for the name and key of another one."""
        return self.sign(other.key.public_key(), other.certificate.subject, ca=True)

    def sign(
        self,
        public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        name: x509.Name,
        *,
        hosts: list[str] | None = None,
        ca: bool = False,
        days: float = 90,
        since: float = 1,
        usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.SERVER_AUTH,
        digest: hashes.HashAlgorithm | None = None,
        serial: int | None = None,
        path_length: int | None = None,
        key_usage: bool = True,
    ) -> x509.Certificate:
        now = datetime.now(UTC).replace(microsecond=0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(now - timedelta(days=since))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca, path_length), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
        )
        if ca and key_usage:
            builder = builder.add_extension(_CA_USAGE, critical=True)
        if not ca and usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(h) for h in hosts]), critical=False
            )
        return builder.sign(self.key, digest or hashes.SHA256())  # type: ignore[arg-type]


_CA_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Trust"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def root(name: str = "Test Root", key: Key | None = None) -> Authority:
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC).replace(microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(subject(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def openssl(*words: str | Path, text: str = "") -> str:
    command = ["openssl", *map(str, words)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def csr_of(key: Key, *hosts: str) -> str:
    """A CSR that the server has never seen."""
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(hosts[0])).add_extension(names, False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def rsa_of_known_primes(first: int, second: int) -> rsa.RSAPrivateKey:
    """A valid RSA key of any size at once: its primes are Mersenne's, 2**first - 1 and 2**second - 1."""
    p, q = 2**second - 1, 2**first - 1
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)
