"""Login with an API token, which creates an access token (contract-infisical, "Common")."""

from app.audit import record as audit
from app.caller import Caller, RequestInfo
from app.errors import Scheme, Unauthenticated
from app.identity import tokens
from app.identity.admission import authenticate
from app.identity.memory import Memory, TokenCredential
from app.ids import any_uuid
from app.services import Services

_LOGIN = f"""
WITH access AS (
    INSERT INTO access_tokens (digest, token_id, expires_at)
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
