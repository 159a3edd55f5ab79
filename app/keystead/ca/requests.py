"""Certificates by profile: issued and renewed within its policy, found again by their ids (contract-infisical)."""

from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from cryptography import x509

from keystead.ca import authorities, issuing, leaves, policies, profiles
from keystead.ca.issuing import Signed
from keystead.ca.leaves import ByProfile, LeafRequest
from keystead.ca.model import Issued
from keystead.ca.policies import KeyAlgorithm
from keystead.ca.profiles import Defaults, Profile
from keystead.caller import Caller, Scope
from keystead.errors import Refusal, quoted
from keystead.services import Services
from keystead.x509 import pkix
from keystead.x509.keys import CaKeyType
from keystead.x509.subjects import CaSubject

DEFAULT_TTL = timedelta(days=90)


class San(msgspec.Struct, frozen=True):
    type: str
    value: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A request by a profile; what is None comes from the CSR, or else from the profile's defaults."""

    profile_id: UUID
    application_id: UUID | None = None
    csr: str = ""
    common_name: str | None = None
    organization: str | None = None
    organizational_unit: str | None = None
    country: str | None = None
    state: str | None = None
    locality: str | None = None
    sans: tuple[San, ...] = ()
    key_usages: tuple[str, ...] = ()
    extended_key_usages: tuple[str, ...] = ()
    key_algorithm: KeyAlgorithm | None = None
    signature_algorithm: str | None = None
    ttl: timedelta | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None


class Issuance(msgspec.Struct, frozen=True):
    """A new certificate, and its private key where that was made here; the key is not stored."""

    issued: Issued
    signed: Signed
    private_key: str = ""

    def __repr__(self) -> str:
        return f"Issuance({self.issued.serial})"


async def issue(services: Services, caller: Caller, scope: Scope, wanted: Wanted) -> Issuance:
    """Sign a CSR, or make a key and a certificate for it; raises NotFound, Invalid, and Refusal with rule and value."""
    profile = await profiles.profile(services.db, scope, wanted.profile_id)
    if wanted.application_id:
        await _require_enrolled(services, scope, wanted.application_id, profile)
    rules = (await profiles.policy(services.db, scope, profile.policy_id)).rules
    await _require_signature(services, scope, profile, wanted.signature_algorithm)
    request = _leaf(wanted, profile, rules)
    return await _issued(services, caller, scope, profile.ca_id, request)


async def renew(services: Services, caller: Caller, scope: Scope, certificate_id: UUID) -> Issuance:
    """A new certificate like an old one, as long as that was, within what the policy says now.

    For a key that was made here, a new key is made; else the new certificate is for the same key.
    """
    old = await issuing.by_id(services.db, scope, certificate_id)
    if old.profile_id is None:
        raise Refusal("The certificate was not issued by a profile, so it cannot be renewed: sign its CSR again")
    if old.revoked_at or old.pem is None:
        raise Refusal(f"The certificate cannot be renewed: it {'is revoked' if old.revoked_at else 'was not signed'}")
    profile = await profiles.profile(services.db, scope, old.profile_id)
    if old.application_id:
        await _require_enrolled(services, scope, old.application_id, profile)
    rules = (await profiles.policy(services.db, scope, profile.policy_id)).rules
    certificate = issuing.read_of(f"serial {old.serial}", old.pem)[0]
    subject = pkix.ca_subject(certificate.subject) or CaSubject()
    names = tuple(str(name.value) for name in _sans(certificate))
    request = LeafRequest(
        common_name=old.common_name,
        friendly_name=old.friendly_name,
        ttl=old.not_after - old.created_at.replace(microsecond=0),
        key_usages=old.key_usages,
        extended_key_usages=old.extended_key_usages,
        by=ByProfile(rules, profile.id, old.application_id, names, subject, _same_type(certificate)),
    )
    if old.key_made_here:
        return await _issued(services, caller, scope, profile.ca_id, request)
    signed = await leaves.sign_again(services, caller, scope, request, (profile.ca_id, certificate))
    return Issuance(await issuing.get(services.db, scope.account_id, signed.serial), signed)


async def _issued(services: Services, caller: Caller, scope: Scope, ca_id: UUID, request: LeafRequest) -> Issuance:
    if request.csr:
        signed, private_key = await leaves.sign(services, caller, scope, ca_id, request), ""
    else:
        made = await leaves.issue(services, caller, scope, ca_id, request)
        signed, private_key = made.signed, made.private_key
    return Issuance(await issuing.get(services.db, scope.account_id, signed.serial), signed, private_key)


def _sans(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _same_type(certificate: x509.Certificate) -> CaKeyType | None:
    name = policies.key_algorithm(issuing.ca_public_key(certificate))
    return policies.KEY_TYPES[KeyAlgorithm(name)] if name in set(KeyAlgorithm) else None


async def _require_enrolled(services: Services, scope: Scope, application_id: UUID, profile: Profile) -> None:
    link = await profiles.link(services.db, scope, application_id, profile.id)
    if link.enrollment_id is None:
        raise Refusal(f"API enrollment of profile {quoted(profile.slug)} is switched off for this application")


async def _require_signature(services: Services, scope: Scope, profile: Profile, wanted: str | None) -> None:
    """A CA signs in one way; another that was asked for is refused, not passed over."""
    if wanted is None:
        return
    authority = await authorities.get(services.db, scope, profile.ca_id)
    signs = policies.signature_algorithm(issuing.ca_public_key(authorities.certificate_of(authority)))
    if wanted != signs:
        raise Refusal(f"signatureAlgorithm is {wanted}, and the CA signs with {signs}")


def _leaf(wanted: Wanted, profile: Profile, rules: policies.Rules) -> LeafRequest:
    defaults = profile.defaults
    subject = _subject(wanted, defaults)
    if wanted.csr and wanted.key_algorithm:
        raise Refusal("keyAlgorithm is for a key that is made here; the CSR has one already")
    key_algorithm = wanted.key_algorithm or defaults.key_algorithm
    names = []
    for san in wanted.sans:
        found = policies.san_type(leaves.general_name(san.value))
        if found != san.type:
            raise Refusal(f"altNames has {quoted(san.value)} as {san.type}, and it is of type {found}")
        names.append(san.value)
    ttl = timedelta(days=defaults.ttl_days) if defaults.ttl_days else DEFAULT_TTL
    return LeafRequest(
        csr=wanted.csr,
        common_name=(wanted.common_name or "") if wanted.csr else subject.common_name,
        ttl=wanted.ttl or (None if wanted.not_after else ttl),
        not_before=wanted.not_before,
        not_after=wanted.not_after,
        key_usages=wanted.key_usages or _camel(() if wanted.csr else defaults.key_usages),
        extended_key_usages=wanted.extended_key_usages or _camel(() if wanted.csr else defaults.extended_key_usages),
        by=ByProfile(
            rules,
            profile.id,
            wanted.application_id,
            tuple(names),
            subject,
            policies.KEY_TYPES[key_algorithm] if key_algorithm else None,
        ),
    )


def _camel(usages: tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(policies.camel(usage) for usage in usages or ())


def _subject(wanted: Wanted, defaults: Defaults) -> CaSubject:
    fields = CaSubject.__struct_fields__
    return CaSubject(**{field: getattr(wanted, field) or getattr(defaults, field) or "" for field in fields})
