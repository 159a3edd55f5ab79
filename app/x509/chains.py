"""Reads uploaded certificates, validates the leaf, and builds chains to a trust anchor.

Pure: the time and the trust anchors are parameters. Sources: RFC 7468 (PEM), RFC 5280 sections 4 and 6.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypeAlias, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from app.errors import Advice, Hint, Invalid, Problem, Rule, quoted
from app.times import has_begun
from app.x509 import der, foreign, keys, weak_keys
from app.x509.pem import PASSED_OVER, TRUSTED, Block, Garbled, Kind, blocks, decoded, instead, unfinished
from app.x509.pem import text as file_text

MAX_CERTIFICATES = 20
MAX_DEPTH = 10
# Signature verifications for one upload.
MAX_CHECKS = 200
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


Certificates: TypeAlias = tuple[x509.Certificate, ...]


class Leaf(msgspec.Struct, frozen=True):
    """The fields of a leaf that we store; `sha256` and `spki_sha256` are 32-byte digests of its DER and its key."""

    hosts: tuple[str, ...]
    issuer: str
    signature: str
    not_before: datetime
    not_after: datetime
    sha256: bytes
    spki_sha256: bytes


class Bundle(msgspec.Struct, frozen=True):
    """A leaf, and the other certificates of the upload in their order."""

    leaf: x509.Certificate
    others: tuple[x509.Certificate, ...]


class Anchors(msgspec.Struct, frozen=True):
    """Trusted certificates, by the DER of their subject."""

    by_name: dict[bytes, tuple[x509.Certificate, ...]]

    def of(self, name: x509.Name) -> tuple[x509.Certificate, ...]:
        return self.by_name.get(name.public_bytes(), ())


def anchored(certificates: Iterable[x509.Certificate]) -> Anchors:
    """Index certificates by subject, without duplicates."""
    by_name: dict[bytes, tuple[x509.Certificate, ...]] = {}
    for anchor in certificates:
        name = anchor.subject.public_bytes()
        if anchor not in by_name.get(name, ()):
            by_name[name] = (*by_name.get(name, ()), anchor)
    return Anchors(by_name)


def anchors(pems: Iterable[bytes]) -> Anchors:
    """Trust anchors from the contents of PEM files; blocks that cannot be read are skipped."""
    return anchored(anchor for content in pems for anchor in read_anchors(content)[0])


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
        except foreign.Unreadable as error:
            skipped.append(str(error))
    if not sent:
        skipped.append(f"it {instead(text, Kind.CERTIFICATE)}")
    return found, skipped


def with_roots(trusted: Anchors, roots: Iterable[str]) -> Anchors:
    """The anchors plus stored roots in PEM; roots that cannot be read are skipped."""
    by_name = dict(trusted.by_name)
    for text in roots:
        try:
            (root,) = stored(text)
            name = root.subject.public_bytes()
            _ = root.extensions
        except Exception:  # noqa: BLE001, S112 - one damaged row must not fail unrelated uploads
            continue
        if root not in by_name.get(name, ()):
            by_name[name] = (*by_name.get(name, ()), root)
    return Anchors(by_name)


def _invalid(rule: Rule, text: str) -> Invalid:
    return Invalid((Problem(rule, "certificate", text),))


def read(text: str) -> tuple[x509.Certificate, ...]:
    """The certificates of an uploaded PEM text in their order, without duplicates; text around PEM is ignored.

    Raises Invalid, whose text never quotes a block, because it may be a private key.
    """
    sent = [block for block in blocks(text) if block.label not in PASSED_OVER]
    broken = unfinished(text)
    if broken or not sent or any(block.kind is not Kind.CERTIFICATE for block in sent):
        what = instead(text, Kind.CERTIFICATE)
        raise _invalid(Rule.CERTIFICATE, f"certificate {broken if broken and sent else what}.")
    found: dict[bytes, x509.Certificate] = {}
    for number, block in enumerate(sent, 1):
        place = f"block {number} of {len(sent)}"
        try:
            certificate = _certificate(block, place)
        except foreign.Unreadable as error:
            raise _invalid(Rule.CERTIFICATE, f"certificate cannot be read: {error}.") from None
        fault = _fault(certificate)
        if fault:
            whose = f"{place} ({named(certificate.subject)})"
            raise _invalid(Rule.CERTIFICATE, f"certificate is not accepted: {whose}: {fault}.")
        found.setdefault(certificate.public_bytes(serialization.Encoding.DER), certificate)
        if len(found) > MAX_CERTIFICATES:
            text = f"certificate has more than {MAX_CERTIFICATES} certificates; at most {MAX_CERTIFICATES} are allowed."
            raise _invalid(Rule.CERTIFICATE, text)
    return tuple(found.values())


def stored(text: str) -> tuple[x509.Certificate, ...]:
    """The certificates of stored PEM, at least one, without the checks for uploads; raises ValueError."""
    found = tuple(foreign.certificate(decoded(block)) for block in blocks(text))
    if not found:
        raise ValueError("there is no certificate in it")
    return found


def _certificate(block: Block, place: str) -> x509.Certificate:
    """Parse a block; raises Unreadable, whose text begins with `place` and the subject, if that can be read."""
    whose = ""
    try:
        sent = decoded(block)
        whose = foreign.subject_of(sent)
        # OpenSSL's trust settings follow the certificate in a TRUSTED CERTIFICATE block.
        return foreign.certificate(der.first(sent).whole if block.label == TRUSTED else sent)
    except (Garbled, der.Malformed, foreign.Unreadable) as error:
        reason = f"it {error}" if isinstance(error, Garbled) else str(error)
        raise foreign.Unreadable(f"{place}{f' ({whose})' if whose else ''}: {reason}") from None


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
    left_out = (
        "a TRUSTED CERTIFICATE was taken as a CERTIFICATE, without what OpenSSL adds to say what it trusts it for."
    )
    return (Advice(Hint.OTHER, "certificate", left_out),)


def arrange(certificates: Sequence[x509.Certificate], spki_sha256: bytes | None) -> Bundle:
    """Choose the leaf: the one with this key, else the first. Raises Invalid if there are only CA certificates."""
    leaves = [certificate for certificate in certificates if not is_ca(certificate)]
    if not leaves:
        raise _invalid(Rule.NO_LEAF, "certificate has only CA certificates; the server's own certificate is missing.")
    leaf = next((c for c in leaves if spki_digest(c) == spki_sha256), leaves[0])
    return Bundle(leaf, tuple(certificate for certificate in certificates if certificate is not leaf))


def judge_leaf(leaf: x509.Certificate, now: datetime) -> None:
    """Check a leaf without its chain: validity, names, key, signature algorithm, extensions; raises Invalid."""
    if leaf.not_valid_after_utc <= now:
        text = f"the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}."
        raise _invalid(Rule.EXPIRED, text)
    if _CONTROL.search("".join((*_hosts(leaf), _issuer(leaf)))):
        raise _invalid(Rule.CERTIFICATE, "certificate has a name with a control character.")
    _check_leaf_key(leaf)
    _check_signature(leaf)
    _check_critical(leaf)
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not (usage.digital_signature or usage.key_encipherment or usage.key_agreement):
        raise _invalid(Rule.CHAIN, "the certificate's key usage has nothing that TLS needs, such as digitalSignature.")
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    if extended is not None and ExtendedKeyUsageOID.SERVER_AUTH not in extended:
        text = "the certificate's extended key usage does not have serverAuth, which many clients ask for."
        raise _invalid(Rule.EXTENDED_KEY_USAGE, text)


# Critical extensions that OpenSSL supports.
_SUPPORTED_CRITICAL = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.NAME_CONSTRAINTS,
    ExtensionOID.CERTIFICATE_POLICIES,
    ExtensionOID.POLICY_MAPPINGS,
    ExtensionOID.POLICY_CONSTRAINTS,
    ExtensionOID.INHIBIT_ANY_POLICY,
    ExtensionOID.CRL_DISTRIBUTION_POINTS,
}


def _check_critical(certificate: x509.Certificate) -> None:
    """Raise Invalid for critical extensions that clients may not support, and so reject (RFC 5280 section 4.2)."""
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.PrecertPoison):
            raise _invalid(
                Rule.CHAIN, "the certificate is a precertificate, made for certificate logs only (RFC 6962)."
            )
        if extension.critical and extension.oid not in _SUPPORTED_CRITICAL:
            oid = extension.oid.dotted_string
            text = f"{named(certificate.subject)} has the critical extension {oid}, which not all clients know."
            raise _invalid(Rule.CHAIN, text)


def _check_key(certificate: x509.Certificate) -> None:
    """Check type and size only; the search for weak keys takes too long for every certificate of a chain."""
    unfit = weak_keys.unfit(_public_key(certificate))
    if unfit:
        raise _invalid(Rule.CHAIN, f"the key of {named(certificate.subject)} {unfit}.")


def _check_leaf_key(leaf: x509.Certificate) -> None:
    weakness = weak_keys.weakness(_public_key(leaf))
    if leaf.public_key_algorithm_oid.dotted_string == weak_keys.RSA_PSS:
        weakness = weak_keys.IS_RSA_PSS
    if weakness:
        raise _invalid(Rule.CHAIN, f"the key of {named(leaf.subject)} {weakness}.")


def _public_key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


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


def _check_signature(certificate: x509.Certificate) -> None:
    name = _BROKEN_SIGNATURES.get(certificate.signature_algorithm_oid.dotted_string, signature_name(certificate))
    if name in _BROKEN_SIGNATURES.values() or name == "SHA1WithRSAPSS":
        raise _invalid(Rule.WEAK_SIGNATURE, f"{named(certificate.subject)} is signed with {name}, which is broken.")


def verify(bundle: Bundle, trusted: Anchors, now: datetime) -> tuple[x509.Certificate, ...]:
    """The intermediates to serve after the leaf, in order, without the trust anchor that the chain ends at.

    Raises Invalid with what is missing or wrong on the longest partial chain. Name constraints and policies are not
    checked.
    """
    return Search(bundle.others, trusted, now).path(bundle.leaf)[1:-1]


class Search:
    """Breadth-first search for the shortest chain to a trust anchor (RFC 5280 section 6).

    Cross-signed issuers have several chains. With `trusted` None the chain ends at any self-signed root in `others`.
    `checks` counts signature verifications: each pair of certificates at most once, at most MAX_CHECKS in total.
    """

    def __init__(self, others: Sequence[x509.Certificate], trusted: Anchors | None, now: datetime) -> None:
        self.others = others
        self.trusted = trusted
        self.now = now
        self.checks = 0

    def path(self, first: x509.Certificate, depth: int = 0) -> tuple[x509.Certificate, ...]:
        """The chain from `first`, which is `depth` levels above the leaf, to the root inclusive; raises Invalid."""
        failures: list[tuple[int, Invalid]] = []
        # Each certificate is visited once, on its shortest path: a longer one never satisfies more path lengths.
        paths: list[tuple[x509.Certificate, ...]] = [(first,)]
        reached = {first}
        for path in paths:
            last, level = path[-1], depth + len(path) - 1
            try:
                if level:
                    _check_issuer(last, level, self.now)
                if level and self.trusted:
                    _check_purpose(last)
            except Invalid as error:
                failures.append((level, error))
                continue
            if level and self._is_root(last):
                return path
            roots = [c for c in self._candidates(last, self._roots(last)) if c.not_valid_after_utc > self.now]
            for root in roots:
                if self._has_signed(root, last):
                    return (*path, root)
            # A self-issued certificate ends a chain, trusted or not.
            fitting = () if is_self_issued(last) or level >= MAX_DEPTH else self._candidates(last, self.others)
            untried = [c for c in fitting if c not in reached and c not in roots]
            # Keys that the next step rejects are not used to verify: oversized keys are slow.
            above = [c for c in untried if not _has_supported_key(c) or self._has_signed(c, last)]
            reached.update(above)
            paths += [(*path, issuer) for issuer in above]
            if not above:
                failures.append((level, _invalid(Rule.CHAIN, self._why_incomplete(last, level, reached))))
        raise max(failures, key=lambda failure: failure[0])[1]

    def _roots(self, certificate: x509.Certificate) -> tuple[x509.Certificate, ...]:
        return self.trusted.of(certificate.issuer) if self.trusted else ()

    def _candidates(
        self, certificate: x509.Certificate, pool: Sequence[x509.Certificate]
    ) -> tuple[x509.Certificate, ...]:
        """Possible issuers by name and key id, best match first; signatures are not verified."""
        wanted = issuer_key_id(certificate)
        found = [c for c in pool if not _mismatch(c, certificate)]
        return tuple(sorted(found, key=lambda c: wanted is None or key_id(c) != wanted))

    def _has_signed(self, issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
        if self.checks >= MAX_CHECKS:
            text = f"the chain is not found within {MAX_CHECKS} signature checks: too many certificates have one name."
            raise _invalid(Rule.CHAIN, text)
        self.checks += 1
        try:
            foreign.require_issued(certificate, issuer)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            return False
        return True

    def _is_root(self, certificate: x509.Certificate) -> bool:
        if self.trusted is None:
            return is_self_issued(certificate) and self._has_signed(certificate, certificate)
        return certificate in self.trusted.of(certificate.subject)

    def _why_incomplete(self, last: x509.Certificate, level: int, reached: set[x509.Certificate]) -> str:
        """Why the chain cannot be continued above `last`, as a sentence."""
        name, issuer = named(last.subject), named(last.issuer)
        if is_self_issued(last):
            if self.trusted is None:
                return f"{name} says that it signed itself, and its signature is not its own key's."
            return f"the chain ends at {name}, which is not trusted here; bundle_method force takes it."
        for sent in self.others:
            if sent == last or _normalized(sent.subject) != _normalized(last.issuer):
                continue
            difference = _mismatch(sent, last)
            if difference or sent not in reached:
                if not difference and level >= MAX_DEPTH:
                    return f"the chain has more than {MAX_DEPTH} certificates above its first one."
                why = difference or "its key did not make the signature"
                return f"{issuer} was sent, but is not the issuer of {name}: {why}."
            return f"the chain comes back to {issuer}, and leads to no root that is known here."
        text = f"the issuer of {name} is missing: {issuer}{_key_id(last)}"
        for root in self._roots(last):
            why = _mismatch(root, last) or (
                "its key did not make the signature" if root.not_valid_after_utc > self.now else "it has expired"
            )
            return f"{text}; a root of that name is trusted here, but {why}."
        return f"{text}."


def _check_issuer(certificate: x509.Certificate, depth: int, now: datetime) -> None:
    """Check a CA `depth` levels above the leaf, so with depth - 1 CAs below it (RFC 5280 section 6.1.4)."""
    name = named(certificate.subject)
    if not is_ca(certificate):
        raise _invalid(Rule.CHAIN, f"{name} is no CA certificate, and yet stands above another one.")
    if now >= certificate.not_valid_after_utc or not has_begun(certificate.not_valid_before_utc, now):
        dates = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        raise _invalid(Rule.CHAIN, f"{name} in the chain is not valid now, but from {dates}.")
    length = path_length(certificate)
    if length is not None and length < depth - 1:
        raise _invalid(Rule.CHAIN, f"{name} allows a shorter path than this chain has.")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise _invalid(Rule.CHAIN, f"{name} may not sign certificates.")
    _check_key(certificate)
    _check_critical(certificate)
    if not is_self_issued(certificate):
        _check_signature(certificate)


def _check_purpose(issuer: x509.Certificate) -> None:
    """Require serverAuth, as clients do of CAs above a server certificate. Not used for imported CAs."""
    extended = _extension(issuer, x509.ExtendedKeyUsage)
    if extended is not None and ExtendedKeyUsageOID.SERVER_AUTH not in extended:
        raise _invalid(Rule.CHAIN, f"the extended key usage of {named(issuer.subject)} does not have serverAuth.")


def ordered(own: x509.Certificate, others: Sequence[x509.Certificate], now: datetime) -> tuple[x509.Certificate, ...]:
    """The chain above a CA's certificate, up to a self-signed root inclusive; unrelated certificates are left out.

    Raises Invalid unless every certificate of it is valid now and may have a CA below it (RFC 5280 section 6.1).
    """
    if is_self_issued(own):
        raise _invalid(Rule.CHAIN, f"{named(own.subject)} is its own issuer, and no root is above it.")
    return Search(others, None, now).path(own, depth=1)[1:]


def _mismatch(issuer: x509.Certificate, certificate: x509.Certificate) -> str:
    """Why `issuer` cannot be the issuer by name, key id and serial (RFC 5280 section 4.2.1.1); empty if it can.

    Names are compared byte for byte, as many clients do; section 7.1 would allow a looser comparison.
    """
    if issuer.subject.public_bytes() != certificate.issuer.public_bytes():
        for ours, theirs in zip(issuer.subject, certificate.issuer, strict=False):
            if _value(ours) != _value(theirs):
                return f"its name has {_value(ours)}, and {_value(theirs)} is named"
        return "its name is put together in another way"
    wanted = _extension(certificate, x509.AuthorityKeyIdentifier)
    if wanted is None:
        return ""
    key = key_id(issuer)
    if wanted.key_identifier is not None and key is not None and key != wanted.key_identifier:
        return f"its key id is {_hex(key)}, and {_hex(wanted.key_identifier)} is named"
    number = wanted.authority_cert_serial_number
    if number is not None and number != issuer.serial_number:
        return f"its serial number is {issuer.serial_number:x}, and {number:x} is named"
    return ""


def _value(attribute: x509.NameAttribute[str | bytes]) -> str:
    kind = attribute._type.name  # noqa: SLF001 - no public API
    return f"{attribute.rfc4514_attribute_name} {quoted(str(attribute.value))} as {kind}"


def _normalized(name: x509.Name) -> tuple[tuple[str, str], ...]:
    """A name for loose comparison: without string types, case and extra white space."""
    return tuple((a.oid.dotted_string, " ".join(str(a.value).split()).casefold()) for a in name)


def _has_supported_key(certificate: x509.Certificate) -> bool:
    try:
        _check_key(certificate)
    except Invalid:
        return False
    return True


def is_self_issued(certificate: x509.Certificate) -> bool:
    return certificate.subject.public_bytes() == certificate.issuer.public_bytes()


def is_ca(certificate: x509.Certificate) -> bool:
    found = _extension(certificate, x509.BasicConstraints)
    return found is not None and found.ca


def path_length(certificate: x509.Certificate) -> int | None:
    """The pathLenConstraint of basicConstraints (RFC 5280 section 4.2.1.9); None if unlimited."""
    found = _extension(certificate, x509.BasicConstraints)
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
        spki_sha256=spki_digest(leaf),
    )


def _hosts(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return tuple(str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    names = san.get_values_for_type(x509.DNSName)
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        a
        for a in san.get_values_for_type(x509.IPAddress)
        if isinstance(a, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    return (*names, *map(str, addresses))


def _issuer(leaf: x509.Certificate) -> str:
    for oid in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME):
        for attribute in leaf.issuer.get_attributes_for_oid(oid):
            return str(attribute.value)
    return ""


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


_E = TypeVar("_E", bound=x509.ExtensionType)


def _extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def key_id(certificate: x509.Certificate) -> bytes | None:
    """The subject key identifier (RFC 5280 section 4.2.1.2)."""
    found = _extension(certificate, x509.SubjectKeyIdentifier)
    return found.digest if found else None


def issuer_key_id(certificate: x509.Certificate) -> bytes | None:
    """The key identifier in the authority key identifier (RFC 5280 section 4.2.1.1)."""
    found = _extension(certificate, x509.AuthorityKeyIdentifier)
    return found.key_identifier if found else None


def name_sha256(name: x509.Name) -> bytes:
    """SHA-256 of a name's DER."""
    return hashlib.sha256(name.public_bytes()).digest()


def _hex(octets: bytes) -> str:
    return octets.hex(":").upper()


def _key_id(certificate: x509.Certificate) -> str:
    found = issuer_key_id(certificate)
    return f" with the key id {_hex(found)}" if found else ""


def pem(certificates: Iterable[x509.Certificate]) -> str:
    return "".join(c.public_bytes(serialization.Encoding.PEM).decode("ascii") for c in certificates)
