"""What `keystead serve` does before it serves: schema, ring, first account, credentials file."""

import os
import pwd
import re
import shlex
from pathlib import Path
from uuid import UUID

import msgspec

from keystead import __version__, files, visible
from keystead.caller import Actor, Caller, Role
from keystead.config import Settings
from keystead.custody import keyring
from keystead.custody import ring as ringfile
from keystead.custody.peppers import ensure_pepper, load_peppers
from keystead.custody.ring import Ring
from keystead.errors import KeyDamaged, Misconfigured, NotFound
from keystead.identity import accounts, policies, tokens, zones
from keystead.identity.accounts import Account
from keystead.server import roles
from keystead.server.postgres import Cluster
from keystead.services import Services, for_command
from keystead.store import database as db
from keystead.store import schema

FIRST_SLUG = "default"
FIRST_ZONE = "example.com"
FIRST_EMAIL = "admin@example.com"


def operator() -> Caller:
    """The caller for the command line, with access to everything; the audit log names the operating system's user.

    The name comes from the process's uid, not from LOGNAME or USER. SUDO_UID is only appended, because any user can
    set it.
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


async def prepare(settings: Settings, cluster: Cluster | None = None) -> str:
    """Prepare the installation for serving and return the banner; raises Misconfigured.

    For the bundled PostgreSQL (`cluster`), also creates its roles and their grants.
    """
    if cluster is not None:
        await roles.make(cluster.dsn)
        settings = msgspec.structs.replace(settings, database_url=cluster.owner)
    dsn = settings.database_url or ""
    # The operator's own database is only migrated when it is empty; later upgrades are left to `keystead migrate`.
    if settings.embedded or await schema.state_at(dsn) is schema.SchemaState.EMPTY:
        await schema.migrate(dsn)
    if cluster is not None:
        await roles.grant(dsn)
    database = db.Database(dsn, 1, settings.statement_cache_size)
    try:
        await schema.require_current(database)
        ring = await ring_for(settings, database)
        peppers = await load_peppers(database, ring)
        credentials = await _first_account(settings, for_command(database, ring, peppers))
    except KeyDamaged as error:
        raise Misconfigured(f"the ring {settings.keyring} does not belong to this database: {error}") from None
    finally:
        await database.close()
    for shared in ("limits", "writes"):
        (settings.data_dir / shared).unlink(missing_ok=True)
    return _banner(settings, credentials)


async def ring_for(settings: Settings, database: db.Database) -> Ring:
    """Load the ring, or create it if nothing in the database was sealed with another one.

    Raises Misconfigured if it cannot be read or written, or lacks a KEK that the database needs.
    """
    ringfile.sweep(settings.keyring)
    if not settings.keyring.exists() and not await keyring.used_keks(database):
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
    await ensure_pepper(database, ring)
    return ring


async def _first_account(settings: Settings, services: Services) -> Path | None:
    database = services.db
    path = settings.data_dir / "credentials.env"
    # An interrupted first start is finished by the next: there is no token yet, or with the bundled PostgreSQL no file.
    finished = await tokens.list_(database) and (path.exists() or not settings.embedded)
    others = [account for account in await accounts.list_accounts(database) if account.slug != FIRST_SLUG]
    if finished or (others and not settings.embedded):
        return _with_address(path, settings.public_url) if path.exists() else None
    caller = operator()
    try:
        account = await accounts.find_account(database, FIRST_SLUG)
    except NotFound:
        account = await accounts.create_account(database, caller, FIRST_SLUG, "Default")
    existing = await zones.list_(database, account)
    zone = existing[0] if existing else await zones.create_in(database, caller, account, FIRST_ZONE)
    try:
        user = await accounts.find_user(database, FIRST_EMAIL)
    except NotFound:
        user = await accounts.create_user(database, caller, FIRST_EMAIL)
    await accounts.set_membership(database, caller, user, account, Role.ADMINISTRATOR)
    key = await tokens.roll_global_key(services, caller, user)
    granted = policies.write(account, policies.default_groups())
    _, token = await tokens.create(services, caller, tokens.NewToken(account, "first token", granted))
    files.write_private(path, Credentials(settings.public_url, token, account, zone.id, FIRST_EMAIL, key).text())
    return path


def _with_address(path: Path, public_url: str) -> Path:
    """Update CLOUDFLARE_BASE_URL in the file after a change of port or address."""
    text = path.read_text()
    updated = re.sub("^CLOUDFLARE_BASE_URL=.*$", lambda _: _base_url(public_url), text, flags=re.MULTILINE)
    if updated != text:
        files.write_private(path, updated)
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
        return f"""\
# Read by the official SDKs and Terraform: set -a; . this file; set +a. Keep it secret.
{_base_url(self.public_url)}
CLOUDFLARE_API_TOKEN={self.token}
CLOUDFLARE_ACCOUNT_ID={self.account.id.hex}
CLOUDFLARE_ZONE_ID={self.zone_id.hex}
KEYSTEAD_PROJECT_SLUG={self.account.slug}
# The older scheme, commented out because clients refuse or mix two schemes at once.
# CLOUDFLARE_EMAIL={self.email}
# CLOUDFLARE_API_KEY={self.key}
"""


_TRY = """\
(. {credentials} && curl -sS "$CLOUDFLARE_BASE_URL/accounts/$CLOUDFLARE_ACCOUNT_ID/custom_csrs" \
-H "Authorization: Bearer $CLOUDFLARE_API_TOKEN" -H "Accept: application/x-pem-file" \
-d '{{"common_name":"www.example.com","sans":["www.example.com","example.com"],"country":"US",\
"state":"California","locality":"San Francisco","organization":"Example, Inc.","key_type":"p256v1"}}')"""


def _banner(settings: Settings, credentials: Path | None) -> str:
    console = f"\n  console      {settings.public_url}/ in a browser" if settings.console else ""
    start = f"""Keystead {__version__} serves on {settings.public_url}
{console}
  back up      {visible.text(str(settings.keyring))}
               and the database; without this ring no private key can be decrypted
"""
    if credentials is None:
        return f"{start}\n  credentials  run `keystead token create` for a token\n"
    return f"""{start}
  credentials  {visible.text(str(credentials))}
  reference    {settings.public_url}/docs

Paste this line to create a first CSR; it prints the PEM:

{_TRY.format(credentials=visible.text(shlex.quote(str(credentials))))}
"""
