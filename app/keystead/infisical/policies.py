"""`/cert-manager/certificate-policies`: what a certificate may say (contract-infisical, "Profiles")."""

from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Controller
from msgspec import UNSET, Meta, UnsetType

from keystead.ca import policies, profiles
from keystead.ca.policies import Algorithms, BasicConstraints, ExtendedKeyUsages, KeyUsages, Rules, SanRule, SubjectRule
from keystead.ca.profiles import NewPolicy, Policy
from keystead.infisical import guard, wire
from keystead.infisical.ca import TAGS
from keystead.infisical.guard import Action
from keystead.infisical.internal_ca import ProjectFilter
from keystead.infisical.reading import Body, Query
from keystead.infisical.wire import Instant, Uuid
from keystead.web.context import CallerContext, ScopeContext
from keystead.web.handling import delete, get, patch, post

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Description = Annotated[str, Meta(max_length=profiles.MAX_DESCRIPTION)]
_Subject = Annotated[tuple[SubjectRule, ...], Meta(max_length=len(policies.SubjectType))]
_Sans = Annotated[tuple[SanRule, ...], Meta(max_length=len(policies.SanType))]


class CertificatePolicyRequest(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A new policy. What is not ruled is free; a member that is not known is refused."""

    name: Name
    description: Description | None = None
    project_id: Uuid | None = None
    subject: _Subject | None = None
    sans: _Sans | None = None
    key_usages: KeyUsages | None = None
    extended_key_usages: ExtendedKeyUsages | None = None
    algorithms: Algorithms | None = None
    validity: policies.Validity | None = None
    basic_constraints: BasicConstraints | None = None


class PolicyChange(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What is left out stays, and null takes a rule away."""

    name: Name | None = None
    description: Description | UnsetType | None = UNSET
    subject: _Subject | UnsetType | None = UNSET
    sans: _Sans | UnsetType | None = UNSET
    key_usages: KeyUsages | UnsetType | None = UNSET
    extended_key_usages: ExtendedKeyUsages | UnsetType | None = UNSET
    algorithms: Algorithms | UnsetType | None = UNSET
    validity: policies.Validity | UnsetType | None = UNSET
    basic_constraints: BasicConstraints | UnsetType | None = UNSET


class CertificatePolicy(msgspec.Struct, frozen=True, rename="camel"):
    """A policy with its rules as they were sent."""

    id: Uuid
    project_id: Uuid
    name: str
    description: str | None
    created_at: Instant
    updated_at: Instant
    subject: tuple[SubjectRule, ...] | UnsetType = UNSET
    sans: tuple[SanRule, ...] | UnsetType = UNSET
    key_usages: KeyUsages | UnsetType = UNSET
    extended_key_usages: ExtendedKeyUsages | UnsetType = UNSET
    algorithms: Algorithms | UnsetType = UNSET
    validity: policies.Validity | UnsetType = UNSET
    basic_constraints: BasicConstraints | UnsetType = UNSET


class PolicyAnswer(msgspec.Struct, frozen=True, rename="camel"):
    certificate_policy: CertificatePolicy


class PolicyList(msgspec.Struct, frozen=True, rename="camel"):
    certificate_policies: list[CertificatePolicy]
    total_count: int


_RULES = Rules.__struct_fields__


class Policies(Controller):
    path = "/cert-manager/certificate-policies"
    tags = TAGS

    @post()
    async def create(self, context: CallerContext, data: Body[CertificatePolicyRequest]) -> PolicyAnswer:
        """Make a policy."""
        scope = await guard.project(context.state, context.caller, data.project_id, Action.CREATE)
        rules = Rules(**{name: getattr(data, name) for name in _RULES})
        new = NewPolicy(data.name, data.description or None, rules)
        return _answer(await profiles.create_policy(context.services.db, context.caller, scope, new))

    @get()
    async def list_(self, context: CallerContext, filters: Query[ProjectFilter]) -> PolicyList:
        """List the policies of an account."""
        scope = await guard.project(context.state, context.caller, filters.project_id, Action.READ)
        found = await profiles.list_policies(context.services.db, scope)
        await profiles.note(context.services.db, context.caller, scope, profiles.POLICY)
        return PolicyList([_object(each) for each in found], len(found))

    @get("/{policy_id:str}", action=Action.READ)
    async def get_one(self, context: ScopeContext, policy_id: str) -> PolicyAnswer:
        """Get a policy."""
        db, scope = context.services.db, context.scope
        found = await profiles.policy(db, scope, UUID(policy_id))
        await profiles.note(db, context.caller, scope, profiles.POLICY, found.id)
        return _answer(found)

    @patch("/{policy_id:str}", action=Action.EDIT)
    async def edit(self, context: ScopeContext, data: Body[PolicyChange], policy_id: str) -> PolicyAnswer:
        """Change a policy, for certificates that are issued from now on."""
        db, scope = context.services.db, context.scope
        old = await profiles.policy(db, scope, UUID(policy_id))
        changed = {name: value for name in _RULES if (value := getattr(data, name)) is not UNSET}
        description = old.description if data.description is UNSET else data.description or None
        rules = msgspec.structs.replace(old.rules, **changed)
        new = msgspec.structs.replace(old, name=data.name or old.name, description=description, rules=rules)
        return _answer(await profiles.change_policy(db, context.caller, scope, new))

    @delete("/{policy_id:str}", action=Action.DELETE)
    async def delete_one(self, context: ScopeContext, policy_id: str) -> PolicyAnswer:
        """Delete a policy that no profile uses."""
        db, scope = context.services.db, context.scope
        old = await profiles.policy(db, scope, UUID(policy_id))
        await profiles.delete(db, context.caller, scope, profiles.POLICY, old.id)
        return _answer(old)


def _answer(policy: Policy) -> PolicyAnswer:
    return PolicyAnswer(_object(policy))


def _object(policy: Policy) -> CertificatePolicy:
    rules = {name: value for name in _RULES if (value := getattr(policy.rules, name)) is not None}
    return CertificatePolicy(
        id=str(policy.id),
        project_id=str(policy.account_id),
        name=policy.name,
        description=policy.description,
        created_at=wire.instant(policy.created_at),
        updated_at=wire.instant(policy.modified_at),
        **rules,
    )
