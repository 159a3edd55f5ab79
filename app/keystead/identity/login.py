"""Login with an API token, which creates an access token; its renewal and its end (contract-infisical, "Common")."""

from keystead.audit import record as audit
from keystead.caller import Caller, RequestInfo
from keystead.errors import Scheme, Unauthenticated
from keystead.identity import tokens
from keystead.identity.admission import authenticate
from keystead.identity.memory import Memory, TokenCredential
from keystead.ids import any_uuid
from keystead.services import Services

# The alias is for Citus, which loses the table's name here.
_LOGIN = f"""
WITH access AS (
    INSERT INTO access_tokens AS made (digest, token_id, expires_at)
    SELECT $1, t.id, now() + make_interval(secs => $2) FROM tokens t
    WHERE t.id = $3 AND t.digest = ANY($5::bytea[]) AND t.status = 'active' FOR KEY SHARE
    RETURNING token_id
),
login AS (
    SELECT coalesce(t.account_id, $4::uuid) AS account_id, t.id, NULL::uuid AS zone_id
    FROM access JOIN tokens t ON t.id = access.token_id
),
audit AS ({audit.insert(6, "login")})
SELECT id FROM login
"""


async def authenticate_login(
    services: Services, memory: Memory, client_id: str, secret: str, request: RequestInfo
) -> Caller:
    """The caller with this id and value of an API token; raises Unauthenticated and Forbidden(ADDRESS)."""
    token_id = any_uuid(client_id)
    if token_id is None or not tokens.is_well_formed(secret) or not secret.startswith(tokens.API_TOKEN):
        raise Unauthenticated(Scheme.TOKEN)
    caller = await authenticate(services, memory, TokenCredential(secret), request, fresh=True)
    if caller.id != token_id:
        raise Unauthenticated(Scheme.TOKEN)
    return caller


async def log_in(services: Services, caller: Caller, secret: str) -> str:
    """Create an access token for the caller's API token, valid for ACCESS_SECONDS at most, and return its value.

    Audited; raises Unauthenticated if the API token was revoked or rolled meanwhile.
    """
    value = tokens.new_token(tokens.ACCESS_TOKEN)
    peppers = services.peppers
    _, digest = peppers.newest(value)
    values = (digest, float(tokens.ACCESS_SECONDS), caller.id, audit.NO_ACCOUNT, peppers.digests(secret))
    audited = audit.values(caller, audit.Action.LOGIN, audit.Resource.TOKEN)
    if await services.db.fetchrow(_LOGIN, *values, *audited) is None:
        raise Unauthenticated(Scheme.TOKEN)
    return value


async def holder(services: Services, memory: Memory, value: str, request: RequestInfo) -> Caller:
    """The caller of an access token; raises Unauthenticated and Forbidden(ADDRESS)."""
    if not tokens.is_well_formed(value) or not value.startswith(tokens.ACCESS_TOKEN):
        raise Unauthenticated(Scheme.TOKEN)
    return await authenticate(services, memory, TokenCredential(value, access=True), request, fresh=True)


_AUDITED = """
access AS (
    SELECT coalesce(t.account_id, $2::uuid) AS account_id, t.id, NULL::uuid AS zone_id
    FROM changed JOIN tokens t ON t.id = changed.token_id
),
audit AS ({audit})
"""
# LEAST passes over the NULL of an API token that does not end.
_RENEW = f"""
WITH changed AS (
    UPDATE access_tokens x SET expires_at = LEAST(now() + make_interval(secs => $3), t.expires_on)
    FROM tokens t WHERE x.digest = ANY($1::bytea[]) AND x.expires_at > now() AND t.id = x.token_id
    RETURNING x.token_id, x.expires_at
),
{_AUDITED.format(audit=audit.insert(4, "access"))}
SELECT floor(extract(epoch FROM changed.expires_at - now()))::integer AS seconds FROM changed
"""
_LOG_OUT = f"""
WITH changed AS (DELETE FROM access_tokens WHERE digest = ANY($1::bytea[]) RETURNING token_id),
{_AUDITED.format(audit=audit.insert(3, "access"))}
SELECT token_id FROM changed
"""


async def renew(services: Services, caller: Caller, value: str) -> int:
    """Move the end of an access token to ACCESS_SECONDS from now, and at most to its API token's.

    Returns the seconds until then. Audited; raises Unauthenticated if it has ended or was revoked meanwhile.
    """
    values = (services.peppers.digests(value), audit.NO_ACCOUNT, float(tokens.ACCESS_SECONDS))
    audited = audit.values(caller, audit.Action.RENEW, audit.Resource.TOKEN)
    row = await services.db.fetchrow(_RENEW, *values, *audited)
    if row is None:
        raise Unauthenticated(Scheme.TOKEN)
    return int(row["seconds"])


async def log_out(services: Services, caller: Caller, value: str) -> None:
    """Delete an access token. Audited; raises Unauthenticated if it was deleted meanwhile."""
    audited = audit.values(caller, audit.Action.REVOKE, audit.Resource.TOKEN)
    if await services.db.fetchrow(_LOG_OUT, services.peppers.digests(value), audit.NO_ACCOUNT, *audited) is None:
        raise Unauthenticated(Scheme.TOKEN)
