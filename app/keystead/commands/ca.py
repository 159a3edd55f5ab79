"""`keystead ca`: private CAs on the command line; certificates, CSRs and CRLs are printed in PEM, for piping."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import click
import msgspec

from keystead.ca import authorities, crls, ending, issuing, leaves, lifecycle, search
from keystead.ca.authorities import Changes, NewAuthority
from keystead.ca.crls import Reason
from keystead.ca.leaves import LeafRequest
from keystead.ca.lifecycle import IntermediateRequest, SignedElsewhere
from keystead.ca.model import Authority, CaType, Issued, IssuedStatus, NotAfterPolicy
from keystead.ca.search import Search
from keystead.commands import terminal
from keystead.commands.terminal import Row
from keystead.identity import accounts
from keystead.server import first_start
from keystead.services import Services
from keystead.store import scopes
from keystead.x509 import crl as crl_bytes
from keystead.x509 import pem, pkix
from keystead.x509.keys import CaKeyType
from keystead.x509.subjects import CaSubject

_not_after = click.option(
    "--not-after", type=terminal.time, help="Expiry, such as 2029, 2029-06-12 or 2029-06-12T12:00:00Z."
)
_path_length = click.option(
    "--path-length",
    "max_path_length",
    type=click.IntRange(-1, authorities.MAX_PATH_LENGTH),
    default=-1,
    show_default=True,
    help="How many levels of CAs may be below it; -1 means no limit.",
)


@click.group()
def ca() -> None:
    """Private CAs; CA is an id, a friendly name or a common name."""


@terminal.command(ca, "create")
@click.argument("common_name")
@click.option(
    "--type",
    type=terminal.choice(CaType),
    default="root",
    show_default=True,
    help="An intermediate is signed by another CA.",
)
@terminal.account_option
@click.option(
    "--key",
    "key_type",
    type=terminal.choice(CaKeyType),
    default="p256v1",
    show_default=True,
    help="Kind of its key pair.",
)
@click.option("--organization", default="", help="O of the subject.")
@click.option("--unit", "organizational_unit", default="", help="OU of the subject.")
@click.option("--country", default="", help="C of the subject, two letters.")
@click.option("--state", default="", help="ST of the subject.")
@click.option("--locality", default="", help="L of the subject.")
@click.option("--name", "friendly_name", help="Friendly name; not in the certificate.")
@_path_length
@_not_after
async def create(services: Services, account: str, **options: object) -> Row:
    """Create a CA: a root signs itself at once (for ten years), an intermediate waits for `ca import`."""
    new = msgspec.convert({**options, "subject": msgspec.convert(options, CaSubject)}, NewAuthority)
    if new.not_after and new.type is not CaType.ROOT:
        raise click.UsageError(
            "--not-after is for a root; an intermediate expires with the certificate that you import"
        )
    owner = await accounts.find_account(services.db, account)
    scope = await scopes.load(services.db, owner.id)
    return _row(await lifecycle.create(services, terminal.operator(), scope, new))


@terminal.command(ca, "list")
@click.option("--account", help="Account id or slug; default: all.")
async def list_(services: Services, account: str | None) -> Sequence[Row]:
    """Show CAs, the oldest first."""
    owner = await accounts.find_account(services.db, account) if account else None
    return [_row(each) for each in await authorities.for_operator(services.db, owner.id if owner else None)]


@terminal.command(ca, "show")
@click.argument("ca")
@click.option("--certificate", is_flag=True, help="Print the certificate in PEM.")
@click.option("--chain", is_flag=True, help="Print the certificate and its chain in PEM, the root last.")
@click.option("--issued", is_flag=True, help="List the certificates it has issued.")
@terminal.out_option
async def show(services: Services, ca: str, out: Path | None, **flags: bool) -> Row | Sequence[Row] | None:
    """Show a CA, its certificate, or the certificates it has issued."""
    _, found = await authorities.find(services.db, ca)
    if flags["certificate"] or flags["chain"] or out:
        current = issuing.latest(found)
        terminal.write(out, current.pem + (current.chain if flags["chain"] else ""))
        return None
    if flags["issued"]:
        return [_issued(each) for each in await issuing.of_ca(services.db, found)]
    return {**_row(found), **_more(found)}


@terminal.command(ca, "certificates")
@click.argument("ca", required=False)
@click.option("--account", help="Account id or slug; default: that of the CA, or the first one.")
@click.option("--name", "common_name", help="Common name.")
@click.option("--san", help="One of the alternative names.")
@click.option("--serial", help="Serial number in hex.")
@click.option("--status", type=terminal.choice(IssuedStatus), help="State.")
@click.option("--expires-before", type=terminal.any_time, help="A date, such as 2029-06-12.")
@click.option("--expires-after", type=terminal.any_time, help="A date, such as 2029-06-12.")
@click.option(
    "--limit", type=click.IntRange(1, search.MAX_LIMIT), default=100, show_default=True, help="At most so many."
)
@click.option("--offset", type=click.IntRange(0), default=0, help="After so many.")
async def certificates(services: Services, ca: str | None, account: str | None, **options: object) -> Sequence[Row]:
    """Search the certificates that CAs have issued, the newest first; without CA, those of all CAs of an account."""
    if ca:
        scope, found = await authorities.find(services.db, ca)
        options["ca_id"] = found.id
    else:
        owner = await accounts.find_account(services.db, account or first_start.FIRST_SLUG)
        scope = await scopes.load(services.db, owner.id)
    wanted = msgspec.convert(options, Search)
    if wanted.serial:
        wanted = msgspec.structs.replace(wanted, serial=wanted.serial.replace(":", "").lower())
    listed = await search.find(services.db, terminal.operator(), scope, wanted)
    return [_issued(each) for each in listed.certificates]


@terminal.command(ca, "csr", json=False)
@click.argument("ca")
@terminal.out_option
async def csr(services: Services, ca: str, out: Path | None) -> None:
    """Print a new CSR for an intermediate, signed with its key."""
    scope, found = await authorities.find(services.db, ca)
    terminal.write(out, await lifecycle.csr(services, terminal.operator(), scope, found.id))


@terminal.command(ca, "import")
@click.argument("ca")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
async def import_(services: Services, ca: str, files: Sequence[str]) -> Row:
    """Install an intermediate's certificate from PEM FILES: its own first, then the chain, including the root."""
    text = "\n".join(terminal.read(name, pem.Kind.CERTIFICATE) for name in files)
    certificate, *chain = (block.text for block in pem.blocks(text) if block.label not in pem.PASSED_OVER)
    if not chain:
        raise click.UsageError("the files must hold its certificate and the chain up to and including the root")
    scope, found = await authorities.find(services.db, ca)
    signed = SignedElsewhere(certificate, "\n".join(chain))
    return _row(await lifecycle.import_certificate(services.db, terminal.operator(), scope, found.id, signed))


class _Sign(msgspec.Struct, frozen=True):
    csr: str
    as_ca: bool
    ttl: timedelta | None
    not_after: datetime | None
    names: str
    usages: tuple[str, ...]
    max_path_length: int
    chain: bool


@terminal.command(ca, "sign", json=False)
@click.argument("ca")
@click.argument("csr", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--ca", "as_ca", is_flag=True, help="Sign it as a CA below this one.")
@click.option("--ttl", type=terminal.span, help="Lifetime, such as 90d; a number and s, m, h, d, w or y.")
@_not_after
@click.option("--names", default="", help="Hosts, addresses, emails and URIs, separated by commas; default: the CSR's.")
@click.option(
    "--usage",
    "usages",
    multiple=True,
    type=click.Choice([*pkix.EXTENDED_KEY_USAGES]),
    help="Default: the CSR's, or else serverAuth.",
)
@_path_length
@click.option("--chain", is_flag=True, help="Add the chain, from this CA to the root.")
@terminal.out_option
async def sign(services: Services, ca: str, out: Path | None, **options: object) -> None:
    """Sign the CSR in a PEM file, or - for standard input, and print the certificate."""
    new = msgspec.convert(options, _Sign)
    if new.as_ca and (new.names or new.usages):
        raise click.UsageError("--names and --usage are for servers and clients, not for a CA")
    if new.max_path_length >= 0 and not new.as_ca:
        raise click.UsageError("--path-length is for a CA: add --ca")
    text, not_after = terminal.read(new.csr, pem.Kind.REQUEST), _expiry(new.ttl, new.not_after)
    scope, found = await authorities.find(services.db, ca)
    if new.as_ca:
        request = IntermediateRequest(text, not_after, max_path_length=new.max_path_length)
        signed = await lifecycle.sign_intermediate(services, terminal.operator(), scope, found.id, request)
    else:
        leaf = LeafRequest(csr=text, alt_names=new.names, not_after=not_after, extended_key_usages=new.usages)
        signed = await leaves.sign(services, terminal.operator(), scope, found.id, leaf)
    terminal.write(out, signed.pem + (signed.chain if new.chain else ""))


@terminal.command(ca, "renew")
@click.argument("ca")
@click.option("--ttl", type=terminal.span, help="Lifetime, such as 10y; a number and s, m, h, d, w or y.")
@_not_after
async def renew(services: Services, ca: str, ttl: timedelta | None, not_after: datetime | None) -> Row:
    """Renew the certificate of a root, or of a CA that was signed here, for the same key and name."""
    expiry = _expiry(ttl, not_after)
    scope, found = await authorities.find(services.db, ca)
    return _row(await lifecycle.renew(services, terminal.operator(), scope, found.id, expiry))


@terminal.command(ca, "set")
@click.argument("ca")
@click.option("--status", type=click.Choice(["active", "disabled"]), help="A disabled CA issues no certificates.")
@click.option(
    "--not-after-policy",
    "not_after_policy",
    type=terminal.choice(NotAfterPolicy),
    help="Whether a certificate that would outlive the CA is refused, or ends with it.",
)
@click.option(
    "--issuance",
    type=click.Choice(["direct", "profiles"]),
    help="Whether it signs what is asked of it directly, or by profiles alone.",
)
async def set_(
    services: Services, ca: str, status: str | None, not_after_policy: str | None, issuance: str | None
) -> Row:
    """Disable or enable a CA, or change its rules; its CRL is published either way."""
    if (status, not_after_policy, issuance) == (None, None, None):
        raise click.UsageError("give --status, --not-after-policy or --issuance")
    scope, found = await authorities.find(services.db, ca)
    changes = Changes(
        disabled=status == "disabled" if status else None,
        requires_template=issuance == "profiles" if issuance else None,
        not_after_policy=NotAfterPolicy(not_after_policy) if not_after_policy else None,
    )
    return _row(await authorities.change(services.db, terminal.operator(), scope, found.id, changes))


@terminal.command(ca, "delete", json=False)
@click.argument("ca")
@click.option("--force", is_flag=True, help="First revoke all that it signed, in a last CRL that stays published.")
async def delete(services: Services, ca: str, force: bool) -> str:
    """Delete a CA and destroy its key; refused while sub-CAs or unexpired certificates depend on it."""
    scope, found = await authorities.find(services.db, ca)
    if force:
        await ending.force(services, terminal.operator(), scope, found.id)
    else:
        await authorities.delete(services.db, terminal.operator(), scope, found.id)
    return f"deleted CA {ca}"


@terminal.command(ca, "revoke", json=False)
@click.argument("ca")
@click.argument("serial")
@click.option(
    "--reason",
    type=click.Choice([*Reason.__members__]),
    default=Reason.UNSPECIFIED.name,
    show_default=True,
    help="Stated in the CRL.",
)
async def revoke(services: Services, ca: str, serial: str, reason: str) -> str:
    """Revoke a certificate by its serial number in hex, and sign a new CRL."""
    scope, found = await authorities.find(services.db, ca)
    number = serial.replace(":", "").lower()
    certificate = await issuing.get(services.db, scope.account_id, number)
    if certificate.ca_id != found.id:
        raise issuing.not_found(number)
    revoked = await crls.revoke(services, terminal.operator(), scope, certificate, Reason[reason])
    return f"revoked certificate {revoked.serial}"


@terminal.command(ca, "crl", json=False)
@click.argument("ca")
@terminal.out_option
async def crl(services: Services, ca: str, out: Path | None) -> None:
    """Print the CA's CRL in PEM."""
    _, found = await authorities.find(services.db, ca)
    terminal.write(out, crl_bytes.pem(await crls.current(services, found)))


def _expiry(ttl: timedelta | None, not_after: datetime | None) -> datetime:
    if (ttl is None) == (not_after is None):
        raise click.UsageError("give either --ttl or --not-after")
    try:
        return not_after or issuing.now() + (ttl or timedelta())
    except OverflowError:
        raise click.BadParameter("it is too far in the future", param_hint="--ttl") from None


def _row(authority: Authority) -> Row:
    current = authority.certificate
    return {
        "id": str(authority.id),
        "type": authority.type.value,
        "status": authority.status.value,
        "common_name": authority.subject.common_name,
        "key": authority.key_type.value,
        "account_id": authority.account_id.hex,
        "expires_on": terminal.shown(current.not_after if current else None),
    }


def _more(authority: Authority) -> Row:
    current = authority.certificate
    return {
        "subject": pkix.ca_name(authority.subject).rfc4514_string(),
        "name": authority.friendly_name,
        "parent": str(authority.parent_id) if authority.parent_id else None,
        "path_length": current.path_length if current else None,
        "serial": current.serial if current else None,
        "version": current.version if current else None,
        "created_on": terminal.shown(authority.created_at),
    }


def _issued(certificate: Issued) -> Row:
    return {
        "serial": certificate.serial,
        "profile": certificate.profile.value,
        "status": certificate.status(issuing.now()).value,
        "subject": certificate.subject,
        "expires_on": terminal.shown(certificate.not_after),
    }
