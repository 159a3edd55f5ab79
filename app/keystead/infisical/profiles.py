"""`/cert-manager/certificate-profiles`: by what certificates are issued (contract-infisical, "Profiles")."""

from typing import Annotated, Literal
from uuid import UUID

import msgspec
from litestar import Controller
from msgspec import UNSET, Meta, UnsetType

from keystead.ca import authorities, issuing, profiles
from keystead.ca.profiles import Defaults, NewProfile, Profile
from keystead.ids import canonical_uuid
from keystead.infisical import guard, wire
from keystead.infisical.ca import TAGS
from keystead.infisical.guard import Action
from keystead.infisical.internal_ca import ProjectFilter
from keystead.infisical.policies import Description, Name
from keystead.infisical.reading import Body, Query
from keystead.infisical.wire import Instant, Uuid
from keystead.web.context import CallerContext, ScopeContext
from keystead.web.handling import delete, get, patch, post


class ProfileRequest(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A new profile: a CA, what it may sign by it, and what a request need not say."""

    slug: Name
    ca_id: Uuid
    certificate_policy_id: Uuid
    description: Description | None = None
    project_id: Uuid | None = None
    enrollment_type: Literal["api"] | None = "api"
    issuer_type: Literal["ca"] | None = "ca"
    defaults: Defaults | None = None


class ProfileChange(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What is left out stays, and null takes it away; the CA stays."""

    slug: Name | None = None
    certificate_policy_id: Uuid | None = None
    description: Description | UnsetType | None = UNSET
    enrollment_type: Literal["api"] | None = None
    issuer_type: Literal["ca"] | None = None
    defaults: Defaults | UnsetType | None = UNSET


class ProfileQuery(msgspec.Struct, frozen=True, rename="camel"):
    include_configs: Annotated[str, Meta(max_length=5)] | None = None


class CertificateProfile(msgspec.Struct, frozen=True, rename="camel"):
    id: Uuid
    project_id: Uuid
    ca_id: Uuid
    certificate_policy_id: Uuid
    slug: str
    description: str | None
    enrollment_type: str
    issuer_type: str
    created_at: Instant
    updated_at: Instant
    defaults: Defaults | UnsetType = UNSET


class ProfileAnswer(msgspec.Struct, frozen=True, rename="camel"):
    certificate_profile: CertificateProfile


class ProfileList(msgspec.Struct, frozen=True, rename="camel"):
    certificate_profiles: list[CertificateProfile]
    total_count: int


class Project(msgspec.Struct, frozen=True):
    id: Uuid
    name: str
    slug: str


class Projects(Controller):
    path = "/projects/slug"
    tags = TAGS

    @get("/{slug:str}")
    async def get_one(self, context: CallerContext, slug: str) -> Project:
        """Get the account of a slug."""
        db, caller = context.services.db, context.caller
        scope = await authorities.scope_of_slug(db, caller, slug)
        await guard.require(context.state, caller, scope, Action.READ)
        return Project(str(scope.account_id), *await authorities.name_of_account(db, scope))


class Profiles(Controller):
    path = "/cert-manager/certificate-profiles"
    tags = TAGS

    @post()
    async def create(self, context: CallerContext, data: Body[ProfileRequest]) -> ProfileAnswer:
        """Make a profile."""
        ca_id, policy_id = canonical_uuid(data.ca_id), canonical_uuid(data.certificate_policy_id)
        scope = await guard.project(context.state, context.caller, data.project_id, Action.CREATE)
        if ca_id is None:
            raise issuing.no_ca(data.ca_id)
        if policy_id is None:
            raise profiles.missing(profiles.POLICY, data.certificate_policy_id)
        new = NewProfile(data.slug, ca_id, policy_id, data.description or None, data.defaults or Defaults())
        return _answer(await profiles.create_profile(context.services.db, context.caller, scope, new))

    @get()
    async def list_(self, context: CallerContext, filters: Query[ProjectFilter]) -> ProfileList:
        """List the profiles of an account."""
        scope = await guard.project(context.state, context.caller, filters.project_id, Action.READ)
        found = await profiles.list_profiles(context.services.db, scope)
        await profiles.note(context.services.db, context.caller, scope, profiles.PROFILE)
        return ProfileList([_object(each) for each in found], len(found))

    @get("/slug/{slug:str}")
    async def by_slug(self, context: CallerContext, filters: Query[ProjectFilter], slug: str) -> ProfileAnswer:
        """Get a profile by its slug."""
        scope = await guard.project(context.state, context.caller, filters.project_id, Action.READ)
        found = await profiles.profile_by_slug(context.services.db, scope, slug)
        await profiles.note(context.services.db, context.caller, scope, profiles.PROFILE, found.id)
        return _answer(found)

    @get("/{profile_id:str}", action=Action.READ)
    async def get_one(self, context: ScopeContext, query: Query[ProfileQuery], profile_id: str) -> ProfileAnswer:  # noqa: ARG002 - clients send it
        """Get a profile."""
        db, scope = context.services.db, context.scope
        found = await profiles.profile(db, scope, UUID(profile_id))
        await profiles.note(db, context.caller, scope, profiles.PROFILE, found.id)
        return _answer(found)

    @patch("/{profile_id:str}", action=Action.EDIT)
    async def edit(self, context: ScopeContext, data: Body[ProfileChange], profile_id: str) -> ProfileAnswer:
        """Change a profile, for certificates that are issued from now on."""
        db, scope = context.services.db, context.scope
        old = await profiles.profile(db, scope, UUID(profile_id))
        policy_id = canonical_uuid(data.certificate_policy_id) if data.certificate_policy_id else old.policy_id
        if policy_id is None:
            raise profiles.missing(profiles.POLICY, data.certificate_policy_id)
        new = msgspec.structs.replace(
            old,
            slug=data.slug or old.slug,
            policy_id=policy_id,
            description=old.description if data.description is UNSET else data.description or None,
            defaults=old.defaults if data.defaults is UNSET else data.defaults or Defaults(),
        )
        return _answer(await profiles.change_profile(db, context.caller, scope, new))

    @delete("/{profile_id:str}", action=Action.DELETE)
    async def delete_one(self, context: ScopeContext, profile_id: str) -> ProfileAnswer:
        """Delete a profile; what was issued by it stays valid."""
        db, scope = context.services.db, context.scope
        old = await profiles.profile(db, scope, UUID(profile_id))
        await profiles.delete(db, context.caller, scope, profiles.PROFILE, old.id)
        return _answer(old)


def _answer(profile: Profile) -> ProfileAnswer:
    return ProfileAnswer(_object(profile))


def _object(profile: Profile) -> CertificateProfile:
    return CertificateProfile(
        id=str(profile.id),
        project_id=str(profile.account_id),
        ca_id=str(profile.ca_id),
        certificate_policy_id=str(profile.policy_id),
        slug=profile.slug,
        description=profile.description,
        enrollment_type="api",
        issuer_type="ca",
        created_at=wire.instant(profile.created_at),
        updated_at=wire.instant(profile.modified_at),
        defaults=UNSET if profile.defaults == Defaults() else profile.defaults,
    )
