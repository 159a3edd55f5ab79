"""Certificates in PEM: reading uploads, the checks of a single certificate, and the facts that are stored. Pure.

Sources: RFC 7468 (PEM), RFC 5280 section 4. x509/paths.py builds the chain to a trust anchor.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keystead.errors import Advice, Hint, Invalid, Problem, Rule, quoted
from keystead.x509 import der, foreign, keys, weak_keys
from keystead.x509.pem import PASSED_OVER, TRUSTED, Block, Kind, blocks, decoded, instead, unfinished
from keystead.x509.pem import text as file_text

MAX_CERTIFICATES = 20
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_E = TypeVar("_E", bound=x509.ExtensionType)

Certificates: TypeAlias = tuple[x509.Certificate, ...]


class Leaf(msgspec.Struct, frozen=True):
    """The fields of a leaf that are stored; `sha256` is the digest of its DER."""

    hosts: tuple[str, ...]
    issuer: str
    signature: str
    not_before: datetime
    not_after: datetime
    sha256: bytes


class Bundle(msgspec.Struct, frozen=True):
    """A leaf, and the other certificates of the upload in their order."""

    leaf: x509.Certificate
    others: Certificates


class Anchors(msgspec.Struct, frozen=True):
    """Trusted certificates, by the DER of their subject."""

    by_name: dict[bytes, Certificates]

    def of(self, name: x509.Name) -> Certificates:
        return self.by_name.get(name.public_bytes(), ())

    def plus(self, certificates: Iterable[x509.Certificate]) -> "Anchors":
        """These and more anchors, without duplicates."""
        by_name = dict(self.by_name)
        for anchor in certificates:
            name = anchor.subject.public_bytes()
            same_name = by_name.get(name, ())
            if anchor not in same_name:
                by_name[name] = (*same_name, anchor)
        return Anchors(by_name)


def anchors(pems: Iterable[bytes]) -> Anchors:
    """Trust anchors from the contents of PEM files; blocks that cannot be read are skipped."""
    return Anchors({}).plus(anchor for content in pems for anchor in read_anchors(content)[0])


def read_anchors(content: bytes) -> tuple[list[x509.Certificate], list[str]]:
    """The certificates of a PEM file, and for each unreadable block the reason with its position.

    Rules for uploads (`_fault`) do not apply: some widely trusted roots have the serial number 0 or overlong names.
    """
    text = file_text(content)
    found, skipped = [], []
    sent = [block for block in blocks(text) if block.kind is Kind.CERTIFICATE]
    for number, block in enumerate(sent, 1):
        try:
            found.append(_certificate(block, f"block {number} of {len(sent)}"))
        except der.Unreadable as error:
            skipped.append(str(error))
    if not sent:
        skipped.append(f"it {instead(text, Kind.CERTIFICATE)}")
    return found, skipped


def with_roots(trusted: Anchors, roots: Iterable[str]) -> Anchors:
    """The anchors plus stored roots in PEM; roots that cannot be read are skipped."""
    found = []
    for text in roots:
        try:
            (root,) = stored(text)
            _ = (root.subject.public_bytes(), root.extensions)
        except Exception:  # noqa: BLE001, S112 - one damaged row must not fail unrelated uploads
            continue
        found.append(root)
    return trusted.plus(found)


def invalid(rule: Rule, text: str) -> Invalid:
    return Invalid((Problem(rule, "certificate", text),))


def read(text: str) -> Certificates:
    """The certificates of an uploaded PEM text in their order, without duplicates; text around PEM is ignored.

    Raises Invalid, whose text never quotes a block, because it may be a private key.
    """
    sent = [block for block in blocks(text) if block.label not in PASSED_OVER]
    broken = unfinished(text)
    if broken or not sent or any(block.kind is not Kind.CERTIFICATE for block in sent):
        what = instead(text, Kind.CERTIFICATE)
        raise invalid(Rule.CERTIFICATE, f"certificate {broken if broken and sent else what}.")
    found: dict[bytes, x509.Certificate] = {}
    for number, block in enumerate(sent, 1):
        position = f"block {number} of {len(sent)}"
        try:
            certificate = _certificate(block, position)
        except der.Unreadable as error:
            raise invalid(Rule.CERTIFICATE, f"certificate cannot be read: {error}.") from None
        fault = _fault(certificate)
        if fault:
            whose = f"{position} ({named(certificate.subject)})"
            raise invalid(Rule.CERTIFICATE, f"certificate is not accepted: {whose}: {fault}.")
        found.setdefault(certificate.public_bytes(serialization.Encoding.DER), certificate)
        if len(found) > MAX_CERTIFICATES:
            text = f"certificate has more than {MAX_CERTIFICATES} certificates; at most {MAX_CERTIFICATES} are allowed."
            raise invalid(Rule.CERTIFICATE, text)
    return tuple(found.values())


def stored(text: str) -> Certificates:
    """The certificates of stored PEM, at least one, without the checks for uploads; raises ValueError."""
    found = tuple(foreign.certificate(decoded(block)) for block in blocks(text))
    if not found:
        raise ValueError("there is no certificate in it")
    return found


def _certificate(block: Block, position: str) -> x509.Certificate:
    """Parse a block; raises Unreadable, whose text begins with `position` and the subject, if that can be read."""
    sent = b""
    try:
        sent = decoded(block)
        # OpenSSL's trust settings follow the certificate in a TRUSTED CERTIFICATE block.
        return foreign.certificate(der.first(sent).encoded if block.label == TRUSTED else sent)
    except der.Unreadable as error:
        raise der.Unreadable(f"{position}{foreign.subject_of(sent)}: {error}") from None


def _fault(certificate: x509.Certificate) -> str:
    """The rule for uploads that a certificate breaks, in words; empty if none."""
    fault = foreign.name_fault(certificate.subject)
    if fault:
        return fault
    if certificate.serial_number <= 0 and not is_ca(certificate):
        return f"its serial number is {'0' if certificate.serial_number == 0 else 'negative'}, and has to be positive"
    if certificate.not_valid_after_utc < certificate.not_valid_before_utc:
        return "its validity ends before it begins"
    if certificate.version is x509.Version.v1 and list(certificate.extensions):
        return "it has extensions and is of version 1, which has none"
    return ""


def remarks(text: str) -> tuple[Advice, ...]:
    """Warnings about parts of an accepted upload that were ignored."""
    if not any(block.label == TRUSTED for block in blocks(text)):
        return ()
    text = "a TRUSTED CERTIFICATE was taken as a CERTIFICATE, without what OpenSSL adds to say what it trusts it for."
    return (Advice(Hint.OTHER, "certificate", text),)


def arrange(certificates: Sequence[x509.Certificate], spki_sha256: bytes | None) -> Bundle:
    """Choose the leaf: the one with this key, else the first. Raises Invalid if there are only CA certificates."""
    leaves = [certificate for certificate in certificates if not is_ca(certificate)]
    if not leaves:
        raise invalid(Rule.NO_LEAF, "certificate has only CA certificates; the server's own certificate is missing.")
    leaf = next((c for c in leaves if spki_digest(c) == spki_sha256), leaves[0])
    return Bundle(leaf, tuple(certificate for certificate in certificates if certificate is not leaf))


def judge_leaf(leaf: x509.Certificate, now: datetime) -> None:
    """Check a leaf without its chain: validity, names, key, signature algorithm, extensions; raises Invalid."""
    if leaf.not_valid_after_utc <= now:
        raise invalid(Rule.EXPIRED, f"the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}.")
    if _CONTROL.search("".join((*_hosts(leaf), _issuer(leaf)))):
        raise invalid(Rule.CERTIFICATE, "certificate has a name with a control character.")
    is_pss = leaf.public_key_algorithm_oid.dotted_string == weak_keys.RSA_PSS
    fault = key_fault(leaf, lambda key: weak_keys.IS_RSA_PSS if is_pss else weak_keys.weakness(key))
    if fault:
        raise invalid(Rule.CHAIN, fault)
    check_signature(leaf)
    check_critical(leaf)
    usage = extension(leaf, x509.KeyUsage)
    if usage is not None and not (usage.digital_signature or usage.key_encipherment or usage.key_agreement):
        raise invalid(Rule.CHAIN, "the certificate's key usage has nothing that TLS needs, such as digitalSignature.")
    extended = extension(leaf, x509.ExtendedKeyUsage)
    if extended is not None and ExtendedKeyUsageOID.SERVER_AUTH not in extended:
        text = "the certificate's extended key usage does not have serverAuth, which many clients ask for."
        raise invalid(Rule.EXTENDED_KEY_USAGE, text)


# Critical extensions of 2.5.29 that OpenSSL supports: keyUsage, subjectAltName, basicConstraints, nameConstraints,
# cRLDistributionPoints, certificatePolicies, policyMappings, policyConstraints, extKeyUsage, inhibitAnyPolicy.
_SUPPORTED_CRITICAL = {f"2.5.29.{n}" for n in (15, 17, 19, 30, 31, 32, 33, 36, 37, 54)}


def check_critical(certificate: x509.Certificate) -> None:
    """Raise Invalid for critical extensions that clients may not support, and so reject (RFC 5280 section 4.2)."""
    for each in certificate.extensions:
        oid = each.oid.dotted_string
        if isinstance(each.value, x509.PrecertPoison):
            raise invalid(Rule.CHAIN, "the certificate is a precertificate, made for certificate logs only (RFC 6962).")
        if each.critical and oid not in _SUPPORTED_CRITICAL:
            text = f"{named(certificate.subject)} has the critical extension {oid}, which not all clients know."
            raise invalid(Rule.CHAIN, text)


def key_fault(certificate: x509.Certificate, fault_of: Callable[[object], str] = weak_keys.unfit) -> str:
    """What is wrong with a key's type or size, or what `fault_of` finds: only leaves are searched for weak keys."""
    try:
        public_key: object = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        public_key = None
    fault = fault_of(public_key)
    return f"the key of {named(certificate.subject)} {fault}." if fault else ""


# Forgeable signature algorithms; `cryptography` does not know all of them.
_BROKEN_SIGNATURES = {
    "1.2.840.113549.1.1.2": "MD2WithRSA",
    "1.2.840.113549.1.1.3": "MD4WithRSA",
    "1.2.840.113549.1.1.4": "MD5WithRSA",
    "1.2.840.113549.1.1.5": "SHA1WithRSA",
    "1.2.840.10045.4.1": "ECDSAWithSHA1",
    "1.2.840.10040.4.3": "DSAWithSHA1",
    "1.3.14.3.2.3": "MD5WithRSA",
    "1.3.14.3.2.29": "SHA1WithRSA",
    "1.3.36.3.3.1.2": "RIPEMD160WithRSA",
    "1.3.36.3.3.2.2": "ECDSAWithRIPEMD160",
}


def check_signature(certificate: x509.Certificate) -> None:
    name = _BROKEN_SIGNATURES.get(certificate.signature_algorithm_oid.dotted_string, signature_name(certificate))
    if name in _BROKEN_SIGNATURES.values() or name == "SHA1WithRSAPSS":
        raise invalid(Rule.WEAK_SIGNATURE, f"{named(certificate.subject)} is signed with {name}, which is broken.")


def is_self_issued(certificate: x509.Certificate) -> bool:
    return certificate.subject.public_bytes() == certificate.issuer.public_bytes()


def is_ca(certificate: x509.Certificate) -> bool:
    found = extension(certificate, x509.BasicConstraints)
    return found is not None and found.ca


def path_length(certificate: x509.Certificate) -> int | None:
    """The pathLenConstraint of basicConstraints (RFC 5280 section 4.2.1.9); None if unlimited."""
    found = extension(certificate, x509.BasicConstraints)
    return found.path_length if found else None


def is_reproducible(certificate: x509.Certificate) -> bool:
    """Whether `cryptography` re-encodes the subject to the same bytes, as issuing certificates below it requires."""
    return x509.Name(certificate.subject.rdns).public_bytes() in certificate.tbs_certificate_bytes


def spki_digest(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo; that of no bytes, which matches no key, if it cannot be read."""
    try:
        return keys.spki_sha256(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return hashlib.sha256(b"").digest()


def facts(leaf: x509.Certificate) -> Leaf:
    return Leaf(
        hosts=_hosts(leaf),
        issuer=_issuer(leaf),
        signature=signature_name(leaf),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        sha256=hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).digest(),
    )


def _hosts(leaf: x509.Certificate) -> tuple[str, ...]:
    san = extension(leaf, x509.SubjectAlternativeName)
    if san is None:
        return tuple(str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    addresses = (a for a in san.get_values_for_type(x509.IPAddress) if isinstance(a, IPv4Address | IPv6Address))
    return (*san.get_values_for_type(x509.DNSName), *map(str, addresses))


def _issuer(leaf: x509.Certificate) -> str:
    oids = (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
    return next((str(a.value) for oid in oids for a in leaf.issuer.get_attributes_for_oid(oid)), "")


def signature_name(certificate: x509.Certificate) -> str:
    """Cloudflare's name such as SHA256WithRSA or ECDSAWithSHA256; the dotted OID if there is none."""
    try:
        digest = certificate.signature_hash_algorithm
    except (UnsupportedAlgorithm, ValueError):
        digest = None
    oid = certificate.signature_algorithm_oid
    if digest is None:
        return oid.dotted_string
    name = digest.name.upper().replace("-", "")
    if oid.dotted_string.startswith("1.2.840.10045."):
        return f"ECDSAWith{name}"
    return f"{name}WithRSA" + ("PSS" if oid.dotted_string == "1.2.840.113549.1.1.10" else "")


def named(name: x509.Name) -> str:
    """A distinguished name in quotes, for error texts."""
    return quoted(name.rfc4514_string() or "(empty)")


def extension(holder: x509.Certificate | x509.CertificateSigningRequest, kind: type[_E]) -> _E | None:
    try:
        return holder.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def key_id(certificate: x509.Certificate) -> bytes | None:
    """The subject key identifier (RFC 5280 section 4.2.1.2)."""
    found = extension(certificate, x509.SubjectKeyIdentifier)
    return found.digest if found else None


def issuer_key_id(certificate: x509.Certificate) -> bytes | None:
    """The key identifier in the authority key identifier (RFC 5280 section 4.2.1.1)."""
    found = extension(certificate, x509.AuthorityKeyIdentifier)
    return found.key_identifier if found else None


def name_sha256(name: x509.Name) -> bytes:
    return hashlib.sha256(name.public_bytes()).digest()


def pem(certificates: Iterable[x509.Certificate]) -> str:
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode("ascii") for c in certificates)
