"""PKCS#12 (RFC 7292) for servers in Java and Windows. Pure."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import PrivateFormat, load_pem_private_key, pkcs12

from keystead.x509.keys import PrivateKey

# Each guess of a passphrase takes a tenth of a second or so.
_ROUNDS = 100_000


def store(name: str, chain: str, private_key: str, passphrase: bytes) -> bytes:
    """The chain and the key (PEM) under one name; with AES-256 and SHA-256, which Java reads since 8u301."""
    key = load_pem_private_key(private_key.encode("ascii"), None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(key, PrivateKey):
        raise TypeError("neither an RSA nor an EC key")
    leaf, *above = x509.load_pem_x509_certificates(chain.encode("ascii"))
    protection = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(_ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(passphrase)
    )
    return pkcs12.serialize_key_and_certificates(name.encode("ascii"), key, leaf, above, protection)
