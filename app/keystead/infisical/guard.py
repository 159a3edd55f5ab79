"""The guard of Infisical's dialect: who asks, how often, and whether they may (contract-infisical, "Common")."""

from collections.abc import Mapping
from enum import StrEnum
from uuid import UUID

import msgspec
from litestar.handlers import BaseRouteHandler

from keystead.audit import record as audit
from keystead.ca import authorities, issuing, profiles, search
from keystead.ca.model import Issued
from keystead.ca.search import By
from keystead.caller import Access, Area, Caller, RequestInfo, Scope
from keystead.errors import Forbidden, NotFound, Unauthenticated
from keystead.identity import admission, tokens
from keystead.identity.memory import TokenCredential
from keystead.ids import canonical_uuid, hex32
from keystead.infisical import wire
from keystead.infisical.wire import ApiError, Detail, Issue, ValidationFailure
from keystead.web.asgi import header
from keystead.web.context import CallerContext, ScopeContext
from keystead.web.handling import AnyConnection
from keystead.web.state import State, state_of

SUBJECT = "certificate-authorities"


class Action(StrEnum):
    """What is done with CAs, in Infisical's words."""

    READ = "read"
    CREATE = "create"
    EDIT = "edit"
    DELETE = "delete"
    RENEW = "renew"
    SIGN_INTERMEDIATE = "sign-intermediate"
    ISSUE = "issue"
    ISSUE_KEY = "issue-key"
    REVOKE = "revoke"


# Which permissions of our policies each of them needs, all of them. A CA that another one signs can sign anything, so
# whoever makes one must be allowed both.
NEEDS: dict[Action, tuple[Access, ...]] = {
    Action.READ: (Access.READ,),
    Action.CREATE: (Access.WRITE,),
    Action.EDIT: (Access.WRITE,),
    Action.DELETE: (Access.WRITE,),
    Action.RENEW: (Access.WRITE, Access.SIGN),
    Action.SIGN_INTERMEDIATE: (Access.WRITE, Access.SIGN),
    Action.ISSUE: (Access.SIGN,),
    Action.ISSUE_KEY: (Access.ISSUE_KEY,),
    Action.REVOKE: (Access.WRITE,),
}


class CertificateContext(ScopeContext, frozen=True):
    """The certificate that the path names, as it was before the body was read; where it is shown, that is audited."""

    certificate: Issued


async def guard(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Admit the caller before the body is read, or raise; what was found becomes the handler's context.

    Where the path names a CA or certificate, the caller must be allowed the `action` in its account; elsewhere
    the handler asks `require` once the body has named the account.
    """
    state, found = state_of(connection), connection.scope["state"]
    request_info = msgspec.structs.replace(found["request_info"], status=200, denied_status=403)
    caller = await _authenticated(connection, state, request_info)
    count(connection, caller)
    params = connection.path_params
    if "ca_id" not in params and ("serial_number" in params or "certificate_id" in params):
        named = await _certificate(state, caller, params, handler.opt["action"])
        found["context"] = CertificateContext(state, request_info, caller, *named)
        return
    scope = await (_of_ca(state, caller, params["ca_id"]) if "ca_id" in params else _named(state, caller, params))
    if scope is None:
        found["context"] = CallerContext(state, request_info, caller)
        return
    await require(state, caller, scope, handler.opt["action"])
    found["context"] = ScopeContext(state, request_info, caller, scope)


async def _certificate(state: State, caller: Caller, params: Mapping[str, str], action: Action) -> tuple[Scope, Issued]:
    """The certificate that the path names, once the caller may do this with it; to read it is audited."""
    db, named = state.services.db, _name(params)
    if action is Action.READ:
        # Which permissions a caller has in an account does not depend on the account's settings.
        accounts = [account_id for account_id in caller.reach if _may(caller, Scope(account_id), action)]
        shown = await search.viewed(db, caller, accounts, *named) if accounts else None
        if shown:
            return shown
    scope, certificate = await search.one(db, caller, *named)
    await require(state, caller, scope, action)
    if action is Action.READ:
        await search.view(db, caller, certificate)
    return scope, certificate


def _name(params: Mapping[str, str]) -> tuple[By, str | UUID]:
    if "serial_number" in params:
        return By.SERIAL, wire.serial_of(params["serial_number"])
    certificate_id = canonical_uuid(params["certificate_id"])
    if certificate_id is None:
        raise issuing.no_certificate(params["certificate_id"])
    return By.ID, certificate_id


async def _authenticated(connection: AnyConnection, state: State, request_info: RequestInfo) -> Caller:
    scheme, _, value = (header(connection.scope["headers"], b"authorization") or "").partition(" ")
    if scheme.lower() != "bearer":
        raise ApiError(401, "Token missing")
    if not tokens.is_well_formed(value):
        count_failure(state, request_info)
        raise ApiError(403, wire.MALFORMED, "TokenError")
    try:
        credential = TokenCredential(value, access=True)
        return await admission.authenticate(state.services, state.memory, credential, request_info)
    except (Unauthenticated, Forbidden) as error:
        count_failure(state, request_info)
        await admission.audit_denial(state.services.db, error)
        raise


# What a path may name besides a CA or a certificate; the first of them decides the account.
_NOUNS = {"application_id": profiles.APPLICATION, "profile_id": profiles.PROFILE, "policy_id": profiles.POLICY}


async def _named(state: State, caller: Caller, params: Mapping[str, str]) -> Scope | None:
    for name, noun in _NOUNS.items():
        if name in params:
            found = canonical_uuid(params[name])
            if found is None:
                raise profiles.missing(noun, params[name])
            return await profiles.scope_of(state.services.db, caller, noun, found)
    return None


async def _of_ca(state: State, caller: Caller, text: str) -> Scope:
    ca_id = canonical_uuid(text)
    if ca_id is None:
        raise issuing.no_ca(text)
    return await authorities.scope_of_ca(state.services.db, caller, ca_id, state.memory.seconds)


async def scope_of_ca(state: State, caller: Caller, text: str, action: Action) -> tuple[Scope, UUID]:
    """The account and id of a CA that a body names, once the caller may do this with it."""
    scope = await _of_ca(state, caller, text)
    await require(state, caller, scope, action)
    return scope, UUID(text)


async def project(state: State, caller: Caller, text: str | None, action: Action) -> Scope:
    """The account that a request names, or the only one of the caller, once the caller may do this in it."""
    db = state.services.db
    if text is None:
        scope = await authorities.scope_of_only(db, caller)
        if scope is None:
            raise ValidationFailure([Issue("invalid_type", ["projectId"], "Required", "string", "undefined")])
    else:
        account_id = account_id_of(text)
        if account_id is None:
            raise NotFound(f"Project with ID '{text}' not found")
        scope = await authorities.scope_of_account(db, caller, account_id)
    await require(state, caller, scope, action)
    return scope


def account_id_of(text: str) -> UUID | None:
    """An account's id in either form: 32 hex digits are what the other dialect and the commands show."""
    return hex32(text) or canonical_uuid(text)


async def require(state: State, caller: Caller, scope: Scope, action: Action) -> None:
    """Raise 403 unless the caller has every permission that this needs."""
    if not _may(caller, scope, action):
        await audit.denied(state.services.db, caller, audit.Resource.ACCOUNT, scope.account_id, scope)
        text = f"You are not allowed to {action} on {SUBJECT}"
        raise ApiError(403, text, details=[Detail(action.value, SUBJECT)])


def _may(caller: Caller, scope: Scope, action: Action) -> bool:
    return all(caller.may(Area.PRIVATE_CA, access, scope) for access in NEEDS[action])


def count(connection: AnyConnection, caller: Caller) -> None:
    """Count a request of a known caller; raises 429 above the rate limit."""
    _throttle(state_of(connection).count(connection, caller.id))


def count_failure(state: State, request_info: RequestInfo) -> None:
    """Count a failed authentication against its address; raises 429 above the limit."""
    _throttle(state.count_failure(request_info.address))


def _throttle(seconds: int) -> None:
    if seconds:
        raise ApiError(429, "Rate limit exceeded. Please try again later.", retry_after=seconds)
