"""Exporting a certificate with its private key, for the operator."""

import msgspec

from keystead.audit import record as audit
from keystead.caller import Caller
from keystead.certificates.model import Certificate
from keystead.custody import keyring
from keystead.custody.ring import Ring
from keystead.services import Services
from keystead.x509 import chains, keys


class Exported(msgspec.Struct, frozen=True):
    """Certificate chain and private key (PKCS#8) in PEM, for a web server. The repr is empty."""

    fullchain: str
    private_key: str

    def __repr__(self) -> str:
        return "Exported()"


def opened(ring: Ring, certificate: Certificate, held: keyring.Held, spki_sha256: bytes) -> Exported:
    """The chain and the decrypted private key, from memory, for what was audited before; raises KeyDamaged."""
    return Exported(certificate.chain, keys.pem(keyring.open_held(ring, held, spki_sha256)))


async def export(services: Services, caller: Caller, certificate: Certificate) -> Exported:
    """The chain and the decrypted private key, for the operator; audited before it returns.

    Raises KeyDamaged if the key cannot be decrypted or is not that of the certificate.
    """
    key = (certificate.account_id, certificate.key_id, chains.spki_digest(chains.stored(certificate.chain)[0]))
    private_key = await keyring.open_key(services.db, services.ring, caller, key)
    what = (audit.Action.EXPORT, audit.Resource.CUSTOM_CERTIFICATE)
    ids = (certificate.account_id, certificate.id, certificate.zone_id)
    await services.db.transaction(lambda connection: audit.record(connection, caller, *what, ids))
    return Exported(certificate.chain, keys.pem(private_key))
