"""What `keystead serve` does before it serves: schema, ring, first account, credentials file."""

import asyncio
import os
import pwd
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from app import __version__, accounts, db, files, keyring, policies, ringfile, roles, tokens, visible, zones
from app.config import Settings
from app.errors import KeyDamaged, Misconfigured, NotFound
from app.keyring import Peppers
from app.model import Account, Actor, Caller, Role
from app.ringfile import Ring

if TYPE_CHECKING:
    from app.embedded import Cluster

FIRST_SLUG = "default"
FIRST_ZONE = "example.com"
FIRST_EMAIL = "admin@example.com"


def operator() -> Caller:
    """The command line acts in nobody's scope: it is audited by the operating system's user.

    That is who the process runs as, never what LOGNAME or USER say. What sudo says stands beside it, since whoever is
    not root can say it too.
    """
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    before = os.environ.get("SUDO_UID", "")
    if re.fullmatch("[0-9]{1,10}", before):
        name = f"{name} (SUDO_UID={before})"
    return Caller(actor=Actor.OPERATOR, id=UUID(int=0), reach={}, name=name, method="CLI")


def prepare(settings: Settings, cluster: "Cluster | None" = None) -> str:
    """Make the installation ready to serve, and say in a banner what it is; raises Misconfigured.

    In the bundled PostgreSQL, its `cluster`, the servers' role is made ready too.
    """
    return asyncio.run(_prepare(settings, cluster))


async def _prepare(settings: Settings, cluster: "Cluster | None" = None) -> str:
    if cluster is not None:
        await roles.make(cluster.dsn)
        settings = msgspec.structs.replace(settings, database_url=cluster.owner)
    dsn = settings.database_url or ""
    await _schema(settings, dsn)
    if cluster is not None:
        await roles.grant(dsn)
    database = db.Database(dsn, 1, settings.statement_cache_size)
    try:
        await db.require_current(database)
        ring = await ring_for(settings, database)
        peppers = await keyring.load_peppers(database, ring)
        credentials = await _first_account(settings, database, peppers)
    except KeyDamaged as error:
        raise Misconfigured(f"the ring {settings.keyring} does not belong to this database: {error}") from None
    finally:
        await database.close()
    (settings.data_dir / "limits").unlink(missing_ok=True)
    return _banner(settings, credentials)


async def _schema(settings: Settings, dsn: str) -> None:
    # A database of the operator's own is only filled when it is empty: upgrading it is for `keystead migrate`.
    if settings.embedded or await db.state_at(dsn) is db.SchemaState.EMPTY:
        await db.migrate(dsn)


async def ring_for(settings: Settings, database: db.Database) -> Ring:
    """The ring of this installation; made only where nothing in the database needs another one."""
    ringfile.sweep(settings.keyring)
    if not settings.keyring.exists() and await keyring.is_unused(database):
        try:
            ring = ringfile.create(settings.keyring)
        except FileExistsError:
            ring = ringfile.load(settings.keyring)
        except OSError as error:
            raise Misconfigured(f"the ring {settings.keyring} cannot be written ({error.strerror})") from None
    else:
        ring = ringfile.load(settings.keyring)
    await keyring.require_all_keks(database, ring)
    await keyring.register(database, ring)
    await keyring.ensure_pepper(database, ring)
    return ring


async def _first_account(settings: Settings, database: db.Database, peppers: Peppers) -> Path | None:
    path = settings.data_dir / "credentials.env"
    # A start that was killed half way is finished by the next: there is no token yet, or, with a database of our own,
    # no file.
    finished = await tokens.list_(database) and (path.exists() or not settings.embedded)
    others = [account for account in await accounts.list_accounts(database) if account.slug != FIRST_SLUG]
    if finished or (others and not settings.embedded):
        return _addressed(path, settings.public_url) if path.exists() else None
    caller = operator()
    try:
        account = await accounts.find_account(database, FIRST_SLUG)
    except NotFound:
        account = await accounts.create_account(database, caller, FIRST_SLUG, "Default")
    held = await zones.list_(database, account)
    zone = held[0] if held else await zones.create_in(database, caller, account, FIRST_ZONE)
    try:
        user = await accounts.find_user(database, FIRST_EMAIL)
    except NotFound:
        user = await accounts.create_user(database, caller, FIRST_EMAIL)
    await accounts.set_membership(database, caller, user, account, Role.ADMINISTRATOR)
    key = await tokens.roll_global_key(database, peppers, caller, user)
    granted = policies.write(account, policies.default_groups())
    _, token = await tokens.create(database, peppers, caller, tokens.NewToken(account, "first token", granted))
    files.write_private(path, Credentials(settings.public_url, token, account, zone.id, FIRST_EMAIL, key).text())
    return path


def _addressed(path: Path, public_url: str) -> Path:
    """After a change of port or address the file must not lead the clients to where nobody is."""
    text = path.read_text()
    fresh = re.sub("^CLOUDFLARE_BASE_URL=.*$", lambda _: _base_url(public_url), text, flags=re.MULTILINE)
    if fresh != text:
        files.write_private(path, fresh)
    return path


def _base_url(public_url: str) -> str:
    return f"CLOUDFLARE_BASE_URL={shlex.quote(public_url + '/client/v4')}"


class Credentials(msgspec.Struct, frozen=True):
    """What credentials.env holds: the variables that the official clients read."""

    public_url: str
    token: str
    account: Account
    zone_id: UUID
    email: str
    key: str

    def __repr__(self) -> str:
        return "Credentials()"

    def text(self) -> str:
        lines = [
            "# Read by the official SDKs and Terraform: set -a; . this file; set +a. Keep it secret.",
            _base_url(self.public_url),
            f"CLOUDFLARE_API_TOKEN={self.token}",
            f"CLOUDFLARE_ACCOUNT_ID={self.account.id.hex}",
            f"CLOUDFLARE_ZONE_ID={self.zone_id.hex}",
            f"KEYSTEAD_PROJECT_SLUG={self.account.slug}",
            "# The older scheme, commented out because clients refuse or mix two schemes at once.",
            f"# CLOUDFLARE_EMAIL={self.email}",
            f"# CLOUDFLARE_API_KEY={self.key}",
        ]
        return "\n".join(lines) + "\n"


_TRY = """\
(. {credentials} && curl -sS "$CLOUDFLARE_BASE_URL/accounts/$CLOUDFLARE_ACCOUNT_ID/custom_csrs" \
-H "Authorization: Bearer $CLOUDFLARE_API_TOKEN" -H "Accept: application/x-pem-file" \
-d '{{"common_name":"www.example.com","sans":["www.example.com","example.com"],"country":"US",\
"state":"California","locality":"San Francisco","organization":"Example, Inc.","key_type":"p256v1"}}')"""


def _banner(settings: Settings, credentials: Path | None) -> str:
    lines = [
        f"Keystead {__version__} serves on {settings.public_url}",
        "",
        f"  back up      {visible.text(str(settings.keyring))}",
        "               together with the database: without this ring no private key can ever be opened again",
    ]
    if credentials is None:
        return "\n".join([*lines, "", "  credentials  `keystead token create` makes a token", ""])
    lines += [
        f"  credentials  {visible.text(str(credentials))}",
        f"  reference    {settings.public_url}/docs",
        "",
        "Make a first CSR by pasting this line; it prints the PEM:",
        "",
        _TRY.format(credentials=visible.text(shlex.quote(str(credentials)))),
        "",
    ]
    return "\n".join(lines)
