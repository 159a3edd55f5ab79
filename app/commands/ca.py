"""`keystead ca`: private CAs on the command line; certificates, CSRs and CRLs are printed in PEM, for piping."""

import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import click

from app.ca import authorities, crls, issuing, leaves, lifecycle
from app.ca.authorities import Changes, NewAuthority
from app.ca.crls import Reason
from app.ca.issuing import Signed
from app.ca.leaves import LeafRequest
from app.ca.lifecycle import IntermediateRequest, SignedElsewhere
from app.ca.model import Authority, CaType, Issued
from app.commands import terminal
from app.errors import Misconfigured
from app.identity import accounts
from app.services import Services
from app.x509 import crl as crl_bytes
from app.x509 import pem, pkix
from app.x509.keys import CaKeyType
from app.x509.subjects import CaSubject

_out = click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write to.")
_not_after = click.option("--not-after", help="Expiry, such as 2029, 2029-06-12 or 2029-06-12T12:00:00Z.")
_path_length = click.option(
    "--path-length",
    type=click.IntRange(-1, authorities.MAX_PATH_LENGTH),
    default=-1,
    show_default=True,
    help="How many levels of CAs may be below it; -1 means no limit.",
)


@click.group()
def ca() -> None:
    """Private CAs; CA is an id, a friendly name or a common name."""


@ca.command("create")
@click.argument("common_name")
@click.option("--type", "type_", type=click.Choice([each.value for each in CaType]), default="root", show_default=True)
@terminal.account_option
@click.option("--key", type=click.Choice([each.value for each in CaKeyType]), default="p256v1", show_default=True)
@click.option("--organization", default="", help="O of the subject.")
@click.option("--unit", default="", help="OU of the subject.")
@click.option("--country", default="", help="C of the subject, two letters.")
@click.option("--state", default="", help="ST of the subject.")
@click.option("--locality", default="", help="L of the subject.")
@click.option("--name", help="Display name; not in the certificate.")
@_path_length
@_not_after
@terminal.as_json_option
def create(
    common_name: str,
    type_: str,
    account: str,
    key: str,
    organization: str,
    unit: str,
    country: str,
    state: str,
    locality: str,
    name: str | None,
    path_length: int,
    not_after: str | None,
    as_json: bool,
) -> None:
    """Create a CA: a root signs itself at once (for ten years), an intermediate waits for `ca import`."""
    if not_after and type_ != CaType.ROOT:
        raise click.UsageError(
            "--not-after is for a root; an intermediate expires with the certificate that you import"
        )
    new = NewAuthority(
        type=CaType(type_),
        subject=CaSubject(country, organization, unit, state, common_name, locality),
        key_type=CaKeyType(key),
        friendly_name=name,
        max_path_length=path_length,
        not_after=terminal.time_of(not_after, "--not-after"),
    )

    async def work(services: Services) -> Authority:
        db = services.db
        home = await accounts.find_account(db, account)
        scope = await authorities.scope_for_operator(db, home.id)
        return await lifecycle.create(services, terminal.operator(), scope, new)

    terminal.show([_row(terminal.run_with_ring(work))], as_json)


@ca.command("list")
@click.option("--account", help="Account id or slug; default: all.")
@terminal.as_json_option
def list_(account: str | None, as_json: bool) -> None:
    """Show CAs, the oldest first."""

    async def work(services: Services) -> tuple[Authority, ...]:
        db = services.db
        home = await accounts.find_account(db, account) if account else None
        return await authorities.for_operator(db, home.id if home else None)

    terminal.show([_row(each) for each in terminal.run_with_ring(work)], as_json)


@ca.command("show")
@click.argument("ca")
@click.option("--certificate", is_flag=True, help="Print the certificate in PEM.")
@click.option("--chain", is_flag=True, help="Print the certificate and its chain in PEM, the root last.")
@click.option("--issued", is_flag=True, help="List the certificates it has issued.")
@_out
@terminal.as_json_option
def show(ca: str, certificate: bool, chain: bool, issued: bool, out: Path | None, as_json: bool) -> None:
    """Show a CA, its certificate, or the certificates it has issued."""

    async def work(services: Services) -> tuple[Authority, tuple[Issued, ...]]:
        db = services.db
        found = (await authorities.find(db, ca))[1]
        return found, await issuing.of_ca(db, found) if issued else ()

    found, signed = terminal.run_with_ring(work)
    if certificate or chain or out:
        current = issuing.latest(found)
        _write(out, current.pem + (current.chain if chain else ""))
    elif issued:
        terminal.show([_issued(each) for each in signed], as_json)
    else:
        terminal.show([{**_row(found), **_more(found)}], as_json)


@ca.command("csr")
@click.argument("ca")
@_out
def csr(ca: str, out: Path | None) -> None:
    """Print a new CSR for an intermediate, signed with its key."""
    _check(out)

    async def work(services: Services) -> str:
        scope, found = await authorities.find(services.db, ca)
        return await lifecycle.csr(services, terminal.operator(), scope, found.id)

    _write(out, terminal.run_with_ring(work))


@ca.command("import")
@click.argument("ca")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@terminal.as_json_option
def import_(ca: str, files: Sequence[str], as_json: bool) -> None:
    """Install an intermediate's certificate from PEM FILES: its own first, then the chain, including the root."""
    text = "\n".join(_read(name, pem.Kind.CERTIFICATE) for name in files)
    found = [block for block in pem.blocks(text) if block.label not in pem.PASSED_OVER]
    if len(found) < 2:
        raise click.UsageError("the files must hold its certificate and the chain up to and including the root")
    signed = SignedElsewhere(*("\n".join(block.text for block in part) for part in (found[:1], found[1:])))

    async def work(services: Services) -> Authority:
        db = services.db
        scope, authority = await authorities.find(db, ca)
        return await lifecycle.import_certificate(db, terminal.operator(), scope, authority.id, signed)

    terminal.show([_row(terminal.run_with_ring(work))], as_json)


@ca.command("sign")
@click.argument("ca")
@click.argument("csr", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--ca", "as_ca", is_flag=True, help="Sign it as a CA below this one.")
@click.option("--ttl", help="Lifetime, such as 90d; a number and s, m, h, d, w or y.")
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
@_out
def sign(
    ca: str,
    csr: str,
    as_ca: bool,
    ttl: str | None,
    not_after: str | None,
    names: str,
    usages: Sequence[str],
    path_length: int,
    chain: bool,
    out: Path | None,
) -> None:
    """Sign the CSR in a PEM file, or - for standard input, and print the certificate."""
    if as_ca and (names or usages):
        raise click.UsageError("--names and --usage are for servers and clients, not for a CA")
    if path_length >= 0 and not as_ca:
        raise click.UsageError("--path-length is for a CA: add --ca")
    _check(out)
    text, last = _read(csr, pem.Kind.REQUEST), _end(ttl, not_after)

    async def work(services: Services) -> Signed:
        scope, found = await authorities.find(services.db, ca)
        if as_ca:
            asked = IntermediateRequest(text, last, max_path_length=path_length)
            return await lifecycle.sign_intermediate(services, terminal.operator(), scope, found.id, asked)
        leaf = LeafRequest(csr=text, alt_names=names, not_after=last, extended_key_usages=tuple(usages))
        return await leaves.sign(services, terminal.operator(), scope, found.id, leaf)

    signed = terminal.run_with_ring(work)
    _write(out, signed.pem + (signed.chain if chain else ""))


@ca.command("renew")
@click.argument("ca")
@click.option("--ttl", help="Lifetime, such as 10y; a number and s, m, h, d, w or y.")
@_not_after
@terminal.as_json_option
def renew(ca: str, ttl: str | None, not_after: str | None, as_json: bool) -> None:
    """Renew the certificate of a root, or of a CA that was signed here, for the same key and name."""
    ends = _end(ttl, not_after)

    async def work(services: Services) -> Authority:
        scope, found = await authorities.find(services.db, ca)
        return await lifecycle.renew(services, terminal.operator(), scope, found.id, ends)

    terminal.show([_row(terminal.run_with_ring(work))], as_json)


@ca.command("set")
@click.argument("ca")
@click.option(
    "--status", type=click.Choice(["active", "disabled"]), required=True, help="A disabled CA issues no certificates."
)
@terminal.as_json_option
def set_(ca: str, status: str, as_json: bool) -> None:
    """Disable or enable a CA; its CRL is published either way."""

    async def work(services: Services) -> Authority:
        db = services.db
        scope, found = await authorities.find(db, ca)
        changes = Changes(disabled=status == "disabled")
        return await authorities.change(db, terminal.operator(), scope, found.id, changes)

    terminal.show([_row(terminal.run_with_ring(work))], as_json)


@ca.command("delete")
@click.argument("ca")
def delete(ca: str) -> None:
    """Delete a CA and destroy its key; refused while sub-CAs or unexpired certificates depend on it."""

    async def work(services: Services) -> None:
        db = services.db
        scope, found = await authorities.find(db, ca)
        await authorities.delete(db, terminal.operator(), scope, found.id)

    terminal.run_with_ring(work)
    terminal.say(f"deleted CA {ca}")


@ca.command("revoke")
@click.argument("ca")
@click.argument("serial")
@click.option("--reason", type=click.Choice([*Reason.__members__]), default=Reason.UNSPECIFIED.name, show_default=True)
def revoke(ca: str, serial: str, reason: str) -> None:
    """Revoke a certificate by its serial number in hex, and sign a new CRL."""

    async def work(services: Services) -> Issued:
        db = services.db
        scope, found = await authorities.find(db, ca)
        number = serial.replace(":", "").lower()
        if (await issuing.get(db, scope.account_id, number)).ca_id != found.id:
            raise issuing.not_found(number)
        return await crls.revoke(services, terminal.operator(), scope, number, Reason[reason])

    terminal.say(f"revoked certificate {terminal.run_with_ring(work).serial}")


@ca.command("crl")
@click.argument("ca")
@_out
def crl(ca: str, out: Path | None) -> None:
    """Print the CA's CRL in PEM."""

    async def work(services: Services) -> bytes:
        _, found = await authorities.find(services.db, ca)
        return await crls.current(services, found)

    _write(out, crl_bytes.pem(terminal.run_with_ring(work)))


def _end(ttl: str | None, not_after: str | None) -> datetime:
    span, ends = terminal.span_of(ttl, "--ttl"), terminal.time_of(not_after, "--not-after")
    if (span is None) == (ends is None):
        raise click.UsageError("give either --ttl or --not-after")
    try:
        return ends or issuing.now() + (span or timedelta())
    except OverflowError:
        raise click.BadParameter("it is too far in the future", param_hint="--ttl") from None


def _read(name: str, wanted: pem.Kind) -> str:
    """The text of a file, or of standard input for `-`; raises Misconfigured if it has no PEM block of this kind."""
    try:
        text = pem.text(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as error:
        raise Misconfigured(f"{name} cannot be read ({error.strerror})") from None
    if all(block.kind is not wanted for block in pem.blocks(text)):
        raise Misconfigured(f"{name} {pem.instead(text, wanted)}")
    return text


def _check(out: Path | None) -> None:
    """Raises Misconfigured for an unwritable file before any work whose result would be lost."""
    if out and not (out.parent.is_dir() and os.access(out if out.exists() else out.parent, os.W_OK)):
        raise Misconfigured(f"{out} cannot be written")


def _write(out: Path | None, text: str) -> None:
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="ascii")
    except OSError as error:
        raise Misconfigured(f"{out} cannot be written ({error.strerror})") from None
    terminal.say(f"wrote {out}")


def _row(authority: Authority) -> dict[str, object]:
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


def _more(authority: Authority) -> dict[str, object]:
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


def _issued(certificate: Issued) -> dict[str, object]:
    return {
        "serial": certificate.serial,
        "profile": certificate.profile.value,
        "status": certificate.status(issuing.now()).value,
        "subject": certificate.subject,
        "expires_on": terminal.shown(certificate.not_after),
    }
