"""`/cert-manager/applications`: what certificates are for, and their profiles (contract-infisical, "Profiles")."""

from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Controller
from msgspec import UNSET, Meta, UnsetType

from keystead.ca import profiles
from keystead.ca.profiles import Application, Enrollment, Link, NewApplication
from keystead.ids import canonical_uuid
from keystead.infisical import guard, wire
from keystead.infisical.ca import TAGS
from keystead.infisical.guard import Action
from keystead.infisical.internal_ca import ProjectFilter
from keystead.infisical.policies import Description, Name
from keystead.infisical.reading import Body, Query
from keystead.infisical.wire import Instant, Uuid
from keystead.web.context import CallerContext, ScopeContext
from keystead.web.handling import delete, get, patch, post, put

_Ids = Annotated[tuple[Uuid, ...], Meta(max_length=100)]


class ApplicationRequest(msgspec.Struct, frozen=True, rename="camel"):
    name: Name
    description: Description | None = None
    project_id: Uuid | None = None
    profile_ids: _Ids | None = None


class ApplicationChange(msgspec.Struct, frozen=True, rename="camel"):
    """What is left out stays."""

    name: Name | None = None
    description: Description | UnsetType | None = UNSET


class ProfilesOfApplication(msgspec.Struct, frozen=True, rename="camel"):
    profile_ids: _Ids


class ApplicationObject(msgspec.Struct, frozen=True, rename="camel"):
    id: Uuid
    project_id: Uuid
    name: str
    description: str | None
    created_at: Instant
    updated_at: Instant


class ApplicationAnswer(msgspec.Struct, frozen=True):
    application: ApplicationObject


class ApplicationList(msgspec.Struct, frozen=True, rename="camel"):
    applications: list[ApplicationObject]
    total_count: int


class ApplicationProfile(msgspec.Struct, frozen=True, rename="camel"):
    """`api_config_id` is null where the API does not issue."""

    application_id: Uuid
    profile_id: Uuid
    profile_slug: str
    profile_description: str | None
    api_config_id: Uuid | None
    created_at: Instant
    updated_at: Instant


class ApplicationProfiles(msgspec.Struct, frozen=True):
    profiles: list[ApplicationProfile]


class Pair(msgspec.Struct, frozen=True, rename="camel"):
    application_id: Uuid
    profile_id: Uuid


class ApiEnrollment(msgspec.Struct, frozen=True, rename="camel"):
    id: Uuid
    auto_renew: bool
    renew_before_days: int | None


class EnrollmentAnswer(Pair, frozen=True, rename="camel"):
    """There is no enrollment but by the API."""

    api: ApiEnrollment | None
    est_configured: bool = False
    acme_configured: bool = False
    scep_configured: bool = False


class EnrollmentRequest(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """When clients renew; the server renews nothing by itself."""

    auto_renew: bool
    renew_before_days: Annotated[int, Meta(ge=1, le=3650)] | None = None


class Applications(Controller):
    path = "/cert-manager/applications"
    tags = TAGS

    @post()
    async def create(self, context: CallerContext, data: Body[ApplicationRequest]) -> ApplicationAnswer:
        """Make an application."""
        scope = await guard.project(context.state, context.caller, data.project_id, Action.CREATE)
        new = NewApplication(data.name, data.description or None, _profile_ids(data.profile_ids or ()))
        return _answer(await profiles.create_application(context.services.db, context.caller, scope, new))

    @get()
    async def list_(self, context: CallerContext, filters: Query[ProjectFilter]) -> ApplicationList:
        """List the applications of an account."""
        scope = await guard.project(context.state, context.caller, filters.project_id, Action.READ)
        found = await profiles.list_applications(context.services.db, scope)
        await profiles.note(context.services.db, context.caller, scope, profiles.APPLICATION)
        return ApplicationList([_object(each) for each in found], len(found))

    @get("/by-name/{name:str}")
    async def by_name(self, context: CallerContext, filters: Query[ProjectFilter], name: str) -> ApplicationAnswer:
        """Get an application by its name."""
        scope = await guard.project(context.state, context.caller, filters.project_id, Action.READ)
        found = await profiles.application_by_name(context.services.db, scope, name)
        await profiles.note(context.services.db, context.caller, scope, profiles.APPLICATION, found.id)
        return _answer(found)

    @get("/{application_id:str}", action=Action.READ)
    async def get_one(self, context: ScopeContext, application_id: str) -> ApplicationAnswer:
        """Get an application."""
        db, scope = context.services.db, context.scope
        found = await profiles.application(db, scope, UUID(application_id))
        await profiles.note(db, context.caller, scope, profiles.APPLICATION, found.id)
        return _answer(found)

    @patch("/{application_id:str}", action=Action.EDIT)
    async def edit(
        self, context: ScopeContext, data: Body[ApplicationChange], application_id: str
    ) -> ApplicationAnswer:
        """Rename an application, or describe it anew."""
        db, scope = context.services.db, context.scope
        old = await profiles.application(db, scope, UUID(application_id))
        description = old.description if data.description is UNSET else data.description or None
        new = msgspec.structs.replace(old, name=data.name or old.name, description=description)
        return _answer(await profiles.change_application(db, context.caller, scope, new))

    @delete("/{application_id:str}", action=Action.DELETE)
    async def delete_one(self, context: ScopeContext, application_id: str) -> ApplicationAnswer:
        """Delete an application; what was issued for it stays valid."""
        db, scope = context.services.db, context.scope
        old = await profiles.application(db, scope, UUID(application_id))
        await profiles.delete(db, context.caller, scope, profiles.APPLICATION, old.id)
        return _answer(old)

    @get("/{application_id:str}/profiles", action=Action.READ)
    async def list_profiles(self, context: ScopeContext, application_id: str) -> ApplicationProfiles:
        """List the profiles that an application may use."""
        return _links(await profiles.links(context.services.db, context.scope, UUID(application_id)))

    @post("/{application_id:str}/profiles", action=Action.EDIT)
    async def attach(
        self, context: ScopeContext, data: Body[ProfilesOfApplication], application_id: str
    ) -> ApplicationProfiles:
        """Let an application use profiles."""
        values = (context.services.db, context.caller, context.scope, UUID(application_id))
        return _links(await profiles.attach(*values, _profile_ids(data.profile_ids)))

    @delete("/{application_id:str}/profiles/{profile_id:str}", action=Action.EDIT)
    async def detach(self, context: ScopeContext, application_id: str, profile_id: str) -> Pair:
        """Let an application no longer use a profile."""
        ids = _pair(application_id, profile_id)
        await profiles.detach(context.services.db, context.caller, context.scope, *ids)
        return Pair(*map(str, ids))

    @get("/{application_id:str}/profiles/{profile_id:str}/enrollment", action=Action.READ)
    async def enrollment(self, context: ScopeContext, application_id: str, profile_id: str) -> EnrollmentAnswer:
        """Get how certificates are issued for an application and profile."""
        return _enrollment(await profiles.link(context.services.db, context.scope, *_pair(application_id, profile_id)))

    @put("/{application_id:str}/profiles/{profile_id:str}/enrollment/api", action=Action.EDIT)
    async def enroll(
        self, context: ScopeContext, data: Body[EnrollmentRequest], application_id: str, profile_id: str
    ) -> EnrollmentAnswer:
        """Let the API issue certificates for an application and profile."""
        wanted = Enrollment(data.auto_renew, data.renew_before_days)
        values = (context.services.db, context.caller, context.scope, _pair(application_id, profile_id))
        return _enrollment(await profiles.enroll(*values, wanted))

    @delete("/{application_id:str}/profiles/{profile_id:str}/enrollment/api", action=Action.EDIT)
    async def withdraw(self, context: ScopeContext, application_id: str, profile_id: str) -> Pair:
        """Let the API issue no more certificates for an application and profile."""
        ids = _pair(application_id, profile_id)
        await profiles.enroll(context.services.db, context.caller, context.scope, ids, None)
        return Pair(*map(str, ids))


def _profile_ids(texts: tuple[str, ...]) -> tuple[UUID, ...]:
    found = []
    for text in texts:
        profile_id = canonical_uuid(text)
        if profile_id is None:
            raise profiles.missing(profiles.PROFILE, text)
        found.append(profile_id)
    return tuple(found)


def _pair(application_id: str, profile_id: str) -> tuple[UUID, UUID]:
    return UUID(application_id), _profile_ids((profile_id,))[0]


def _answer(application: Application) -> ApplicationAnswer:
    return ApplicationAnswer(_object(application))


def _object(application: Application) -> ApplicationObject:
    return ApplicationObject(
        id=str(application.id),
        project_id=str(application.account_id),
        name=application.name,
        description=application.description,
        created_at=wire.instant(application.created_at),
        updated_at=wire.instant(application.modified_at),
    )


def _links(links: tuple[Link, ...]) -> ApplicationProfiles:
    return ApplicationProfiles([_link(each) for each in links])


def _link(link: Link) -> ApplicationProfile:
    return ApplicationProfile(
        application_id=str(link.application_id),
        profile_id=str(link.profile_id),
        profile_slug=link.profile_slug,
        profile_description=link.profile_description,
        api_config_id=str(link.enrollment_id) if link.enrollment_id else None,
        created_at=wire.instant(link.created_at),
        updated_at=wire.instant(link.modified_at),
    )


def _enrollment(link: Link) -> EnrollmentAnswer:
    enrolled = link.enrollment_id
    api = ApiEnrollment(str(enrolled), link.auto_renew, link.renew_before_days) if enrolled else None
    return EnrollmentAnswer(str(link.application_id), str(link.profile_id), api)
