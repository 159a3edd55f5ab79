"""A credential that was good a moment ago: what is taken away stays away, whatever was read or remembered before."""

import json
from typing import Any, cast

import asyncpg
import msgspec
import pytest
from support.world import World, make_token

from keystead.custody.peppers import Peppers, add_pepper, load_peppers
from keystead.identity import accounts, admission, policies, tokens
from keystead.identity.memory import Credential, KeyCredential, TokenCredential
from keystead.server import first_start

OPERATOR = first_start.operator()


async def test_a_token_that_was_revoked_changes_nothing_that_outlives_it(world: World) -> None:
    """Tokens, accounts and zones are changed for whoever is good now, and not for who was a second ago."""
    world.state.memory.seconds = 3600.0
    account, groups = world.a.account, ("Account API Tokens Write", "Account Settings Write", "Zone Write")
    chosen = policies.write(account, tuple(policies.find_group(name) for name in groups))
    headers = {"Authorization": f"Bearer {await make_token(world.services, account, groups)}"}

    async def statuses() -> list[int]:
        victim, _ = await tokens.create(world.services, OPERATOR, tokens.NewToken(account, "a victim", chosen))
        of_account = f"/client/v4/accounts/{account.id.hex}"
        calls: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", f"{of_account}/tokens", {"name": "another", "policies": json.loads(chosen)}),
            ("DELETE", f"{of_account}/tokens/{victim.id.hex}", {}),
            ("PUT", of_account, {"name": "Account a"}),
            ("PATCH", f"/client/v4/zones/{world.a.zone.id.hex}", {"paused": True}),
        ]
        answers = [await world.http.request(method, path, json=body, headers=headers) for method, path, body in calls]
        return [answer.status_code for answer in answers]

    assert await statuses() == [200] * 4
    await world.database.execute("UPDATE tokens SET status = 'disabled' WHERE account_id = $1", account.id)
    assert await statuses() == [403] * 4


@pytest.mark.parametrize("kind", ["token", "global key"])
async def test_a_digest_that_is_renewed_late_does_not_bring_back_what_was_rolled(world: World, kind: str) -> None:
    """Who was found with the old value, and is digested with a newer pepper only after a roll, changes nothing."""
    database, first, account = world.database, world.services.peppers, world.a.account
    await add_pepper(database, world.ring, OPERATOR)
    both = (await load_peppers(database, world.ring)).by_id
    (newer,) = both.keys() - first.by_id.keys()
    services = msgspec.structs.replace(world.services, peppers=Peppers(both, newer))
    old: Credential
    if kind == "token":
        new = tokens.NewToken(account, "a token", policies.write(account, policies.default_groups()))
        token, value = await tokens.create(world.services, OPERATOR, new)
        old, row = TokenCredential(value), {"id": token.id, "pepper_id": next(iter(first.by_id))}
        headers = {"Authorization": f"Bearer {await tokens.roll(world.services, OPERATOR, token)}"}
    else:
        user, value = await accounts.find_user(database, world.a.email), world.a.key
        old, row = KeyCredential(user.email, value), {"id": user.id, "pepper_id": next(iter(first.by_id))}
        rolled = await tokens.roll_global_key(world.services, OPERATOR, user)
        headers = {"X-Auth-Email": user.email, "X-Auth-Key": rolled}
    assert not await admission._renew_digest(services, old, cast("asyncpg.Record", row), value)
    assert (await world.http.get(world.a.account_path, headers=headers)).status_code == 200
