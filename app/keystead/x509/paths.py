"""Building of certification paths: from a certificate up to a trust anchor (RFC 5280 section 6). Pure.

Name constraints and policies are not checked.
"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from keystead.errors import Invalid, Rule, quoted
from keystead.times import has_begun
from keystead.x509 import chains, foreign
from keystead.x509.chains import Anchors, Bundle, Certificates

MAX_DEPTH = 10
# Signature verifications for one upload.
MAX_CHECKS = 200
_OTHER_KEY = "its key did not make the signature"


def verify(bundle: Bundle, trusted: Anchors, now: datetime) -> Certificates:
    """The intermediates to serve after the leaf, in order, without the trust anchor that the chain ends at.

    Raises Invalid with what is missing or wrong on the longest partial chain.
    """
    return Search(bundle.others, trusted, now).path(bundle.leaf)[1:-1]


def ordered(own: x509.Certificate, others: Sequence[x509.Certificate], now: datetime) -> Certificates:
    """The chain above a CA's certificate, up to a self-signed root inclusive; unrelated certificates are left out.

    Raises Invalid unless every certificate of it is valid now and may have a CA below it.
    """
    if chains.is_self_issued(own):
        raise chains.invalid(Rule.CHAIN, f"{chains.named(own.subject)} is its own issuer, and no root is above it.")
    return Search(others, None, now).path(own, depth=1)[1:]


class Search:
    """Breadth-first search for the shortest chain to a trust anchor; cross-signed issuers have several chains.

    With `trusted` None the chain ends at any self-signed root in `others`. `checks` counts signature verifications:
    each pair of certificates at most once, at most MAX_CHECKS in total.
    """

    def __init__(self, others: Sequence[x509.Certificate], trusted: Anchors | None, now: datetime) -> None:
        self.others = others
        self.trusted = trusted
        self.now = now
        self.checks = 0

    def path(self, first: x509.Certificate, depth: int = 0) -> Certificates:
        """The chain from `first`, which is `depth` levels above the leaf, to the root inclusive; raises Invalid."""
        failures: list[tuple[int, Invalid]] = []
        # Each certificate is visited once, on its shortest path: a longer one never satisfies more path lengths.
        paths: list[Certificates] = [(first,)]
        reached = {first}
        for path in paths:
            last, level = path[-1], depth + len(path) - 1
            try:
                if level:
                    self._check_issuer(last, level)
            except Invalid as error:
                failures.append((level, error))
                continue
            if level and self._is_root(last):
                return path
            roots = [c for c in _candidates(last, self._roots(last)) if c.not_valid_after_utc > self.now]
            for root in roots:
                if self._has_signed(root, last):
                    return (*path, root)
            # A self-issued certificate ends a chain, trusted or not.
            fitting = () if chains.is_self_issued(last) or level >= MAX_DEPTH else _candidates(last, self.others)
            untried = [c for c in fitting if c not in reached and c not in roots]
            # Keys that the next step rejects are not used to verify: oversized keys are slow.
            above = [c for c in untried if chains.key_fault(c) or self._has_signed(c, last)]
            reached.update(above)
            paths += [(*path, issuer) for issuer in above]
            if not above:
                failures.append((level, chains.invalid(Rule.CHAIN, self._why_incomplete(last, level, reached))))
        raise max(failures, key=lambda failure: failure[0])[1]

    def _roots(self, certificate: x509.Certificate) -> Certificates:
        return self.trusted.of(certificate.issuer) if self.trusted else ()

    def _has_signed(self, issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
        if self.checks >= MAX_CHECKS:
            text = f"the chain is not found within {MAX_CHECKS} signature checks: too many certificates have one name."
            raise chains.invalid(Rule.CHAIN, text)
        self.checks += 1
        try:
            foreign.require_issued(certificate, issuer)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            return False
        return True

    def _is_root(self, certificate: x509.Certificate) -> bool:
        if self.trusted is None:
            return chains.is_self_issued(certificate) and self._has_signed(certificate, certificate)
        return certificate in self.trusted.of(certificate.subject)

    def _check_issuer(self, certificate: x509.Certificate, depth: int) -> None:
        """Check a CA `depth` levels above the leaf, so with depth - 1 CAs below it (RFC 5280 section 6.1.4)."""
        fault = _issuer_fault(certificate, depth, self.now) or chains.key_fault(certificate)
        if fault:
            raise chains.invalid(Rule.CHAIN, fault)
        chains.check_critical(certificate)
        if not chains.is_self_issued(certificate):
            chains.check_signature(certificate)
        # Clients require serverAuth of CAs above a server certificate, but not of an imported CA.
        extended = chains.extension(certificate, x509.ExtendedKeyUsage) if self.trusted else None
        if extended is not None and ExtendedKeyUsageOID.SERVER_AUTH not in extended:
            text = f"the extended key usage of {chains.named(certificate.subject)} does not have serverAuth."
            raise chains.invalid(Rule.CHAIN, text)

    def _why_incomplete(self, last: x509.Certificate, level: int, reached: set[x509.Certificate]) -> str:
        """Why the chain cannot be continued above `last`, as a sentence."""
        name, issuer = chains.named(last.subject), chains.named(last.issuer)
        if chains.is_self_issued(last):
            if self.trusted is None:
                return f"{name} says that it signed itself, and its signature is not its own key's."
            return f"the chain ends at {name}, which is not trusted here; bundle_method force takes it."
        wanted = _normalized(last.issuer)
        sent = next((c for c in self.others if c != last and _normalized(c.subject) == wanted), None)
        if sent:
            difference = _mismatch(sent, last)
            if not difference and sent in reached:
                return f"the chain comes back to {issuer}, and leads to no root that is known here."
            if not difference and level >= MAX_DEPTH:
                return f"the chain has more than {MAX_DEPTH} certificates above its first one."
            return f"{issuer} was sent, but is not the issuer of {name}: {difference or _OTHER_KEY}."
        wanted_key = chains.issuer_key_id(last)
        text = (
            f"the issuer of {name} is missing: {issuer}{f' with the key id {_hex(wanted_key)}' if wanted_key else ''}"
        )
        for root in self._roots(last):
            why = _mismatch(root, last) or (_OTHER_KEY if root.not_valid_after_utc > self.now else "it has expired")
            return f"{text}; a root of that name is trusted here, but {why}."
        return f"{text}."


def _issuer_fault(certificate: x509.Certificate, depth: int, now: datetime) -> str:
    """The rule that a CA `depth` levels above the leaf breaks, as a sentence; empty if none."""
    name = chains.named(certificate.subject)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not chains.is_ca(certificate):
        return f"{name} is no CA certificate, and yet stands above another one."
    if now >= end or not has_begun(begin, now):
        return f"{name} in the chain is not valid now, but from {begin:%Y-%m-%d} to {end:%Y-%m-%d}."
    length = chains.path_length(certificate)
    if length is not None and length < depth - 1:
        return f"{name} allows a shorter path than this chain has."
    usage = chains.extension(certificate, x509.KeyUsage)
    return f"{name} may not sign certificates." if usage is not None and not usage.key_cert_sign else ""


def _candidates(certificate: x509.Certificate, pool: Sequence[x509.Certificate]) -> Certificates:
    """Possible issuers by name and key id, best match first; signatures are not verified."""
    wanted = chains.issuer_key_id(certificate)
    found = [c for c in pool if not _mismatch(c, certificate)]
    return tuple(sorted(found, key=lambda c: wanted is None or chains.key_id(c) != wanted))


def _mismatch(issuer: x509.Certificate, certificate: x509.Certificate) -> str:
    """Why `issuer` cannot be the issuer by name, key id and serial (RFC 5280 section 4.2.1.1); empty if it can.

    Names are compared byte for byte, as many clients do; section 7.1 would allow a looser comparison.
    """
    if issuer.subject.public_bytes() != certificate.issuer.public_bytes():
        for ours, theirs in zip(issuer.subject, certificate.issuer, strict=False):
            if _value(ours) != _value(theirs):
                return f"its name has {_value(ours)}, and {_value(theirs)} is named"
        return "its name is put together in another way"
    wanted = chains.extension(certificate, x509.AuthorityKeyIdentifier)
    if wanted is None:
        return ""
    key = chains.key_id(issuer)
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


def _hex(octets: bytes) -> str:
    return octets.hex(":").upper()
