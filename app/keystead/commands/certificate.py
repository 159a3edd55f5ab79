"""`keystead certificate`: custom certificates, uploaded to the CSR that their key belongs to, and exported."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import click
import msgspec

from keystead import files
from keystead.caller import Scope
from keystead.certificates import store as certificates
from keystead.certificates.export import export
from keystead.certificates.model import Certificate, Superseded
from keystead.cloudflare import renewal
from keystead.cloudflare.custom_certificates import CustomCertificate
from keystead.cloudflare.custom_csrs import CustomCsr
from keystead.cloudflare.renewal import RenewalRule
from keystead.commands import access as access_
from keystead.commands import terminal
from keystead.commands.access import Access
from keystead.commands.terminal import Pem, Row
from keystead.csrs.model import CsrQuery
from keystead.errors import Misconfigured, NotFound
from keystead.identity import zones
from keystead.renewal import rules
from keystead.renewal.model import MAX_DAYS_BEFORE, MAX_PERCENT_BEFORE, NewKey
from keystead.services import Services
from keystead.x509 import chains, pem, pkix
from keystead.x509.chains import Certificates

# certbot's file names, which guides for web servers use.
FULLCHAIN, PRIVATE_KEY = "fullchain.pem", "privkey.pem"

_files = click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False, allow_dash=True))
account_option = click.option("--account", help="Account id, slug or name; default: that of the credentials.")
# Of one certificate, when its CSR is looked for.
_HOSTS_TRIED = 20
_csr = click.option("--csr", "csr", help="Id of the CSR whose key it is; default: found by the key.")


def days(text: str) -> timedelta:
    number = text.removesuffix("d")
    if not number.isascii() or not number.isdigit() or int(number) > 36_500:
        raise click.BadParameter("it takes a number of days, such as 30d")
    return timedelta(days=int(number))


def percent(text: str) -> int:
    """Parse a fraction of a lifetime; NaN is in no range."""
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0.01 <= fraction <= MAX_PERCENT_BEFORE / 100:
        raise click.BadParameter(f"it takes a number from 0.01 to {MAX_PERCENT_BEFORE / 100}, such as 0.33")
    return round(fraction * 100)


@click.group()
def certificate() -> None:
    """Custom certificates: upload, renew, list, inspect and export."""


@terminal.command(certificate, "list")
@click.option("--zone", help="Zone id or name; default: all.")
async def certificate_list(services: Services, zone: str | None) -> Sequence[Row]:
    """List certificates, soonest expiry first."""
    zone_id = (await zones.find(services.db, zone)).id if zone else None
    return [_certificate(each) for each in await certificates.for_operator(services.db, zone_id)]


@terminal.command(certificate, "expiring")
@click.option("--within", type=days, default="30d", show_default=True, help="Days ahead, such as 30d.")
async def certificate_expiring(services: Services, within: timedelta) -> Sequence[Row]:
    """Show the certificates that have expired or expire soon."""
    found = await certificates.for_operator(services.db, before=datetime.now(UTC) + within)
    return [_certificate(each) for each in found]


@terminal.command(certificate, "show")
@click.argument("certificate")
async def certificate_show(services: Services, certificate: str) -> Row:
    """Show a certificate, named by its id."""
    found = await certificates.find(services.db, certificate)
    more = {"issuer": found.issuer, "signature": found.signature, "bundle_method": found.bundle_method.value}
    return {**_certificate(found), **more, "uploaded_on": terminal.shown(found.uploaded_at)}


@terminal.command(certificate, "history")
@click.argument("certificate")
async def certificate_history(services: Services, certificate: str) -> Sequence[Row]:
    """Show the earlier versions of a renewed certificate, latest first."""
    found = await certificates.find(services.db, certificate)
    return [_superseded(each) for each in await certificates.history(services.db, found)]


@terminal.command(certificate, "export", json=False)
@click.argument("certificate")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
async def certificate_export(services: Services, certificate: str, out: Path) -> str:
    """Write fullchain.pem and privkey.pem for a web server; audited."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs here
        found = await certificates.find(services.db, certificate)
        exported = await export(services, terminal.operator(), found)
        files.write_together(out, {PRIVATE_KEY: exported.private_key, FULLCHAIN: exported.fullchain})
    except OSError as error:
        raise Misconfigured(f"{out} cannot be written ({error.strerror})") from None
    return f"wrote {out / FULLCHAIN} and {out / PRIVATE_KEY}"


@access_.command(certificate, "upload")
@_files
@_csr
@account_option
@click.option("--zone", help="Zone id or name; default: that with the longest name above the hosts.")
async def upload(access: Access, files: Sequence[str], csr: str | None, account: str | None, zone: str | None) -> Row:
    """Upload a certificate from PEM FILES, or - for standard input: its own, and those of the CAs above it."""
    text = _read(files)
    hosts = [host.removeprefix("*.") for host in _hosts(chains.read(text))]
    scope = await access_.zone_of(access, account, zone, hosts)
    csr_id = csr or (await _csr_of(access, [scope, Scope(scope.account_id)], text)).id
    return _uploaded(await access.upload(scope, _body(text, csr_id)))


@access_.command(certificate, "renew")
@click.argument("certificate")
@click.argument("files", nargs=-1, type=click.Path(dir_okay=False, allow_dash=True))
@_csr
@click.option("--same-key", is_flag=True, help="Without FILES: print the present CSR again, to keep the key.")
@account_option
@click.option("--zone", help="Zone id or name; default: it is looked for in the account's zones.")
@terminal.out_option
async def renew(
    access: Access, certificate: str, files: Sequence[str], out: Path | None, *, same_key: bool, **where: str | None
) -> Row | Pem:
    """Renew a certificate under its id.

    Without FILES, make a new key and CSR for the same names, and print the CSR in PEM. With the PEM FILES that the CA
    gave for it, put the new certificate in place.
    """
    if files and (same_key or out):
        raise click.UsageError("--same-key and --out are for the CSR: leave FILES out")
    among = await access_.places(access, where["account"], where["zone"])
    scope, found = await access_.find_certificate(access, among, certificate)
    if files:
        text = _read(files)
        csr_id = where["csr"] or (await _csr_of(access, [scope, Scope(scope.account_id)], text)).id
        return _uploaded(await access.renew(scope, UUID(found.id), _body(text, csr_id)))
    if found.custom_csr_id is None:
        raise Misconfigured("its key was uploaded: make a CSR with `keystead csr create`, and name the files here")
    place, present = await access_.find_csr(access, [scope, Scope(scope.account_id)], found.custom_csr_id)
    csr = present if same_key else await access.create_csr(place, _again(present))
    terminal.print_note(f"{'the key stays that of' if same_key else 'made'} the custom CSR {csr.id}")
    return Pem(msgspec.convert(msgspec.to_builtins(csr), dict[str, object]), csr.csr, out)


@access_.command(certificate, "set")
@click.argument("certificate")
@click.option(
    "--renew-with",
    help="A private CA of the account, by id, name or common name; or outside, to make CSRs ahead of time.",
)
@click.option("--days-before", type=click.IntRange(1, MAX_DAYS_BEFORE), help="Days before its end; default: 30.")
@click.option(
    "--fraction",
    type=percent,
    metavar="FRACTION",
    help="How much of its lifetime is left then, in place of days, such as 0.33.",
)
@click.option("--new-key", type=terminal.choice(NewKey), help="A new key for every renewal, the default, or never.")
@click.option("--no-renewal", is_flag=True, help="Renew it no more by itself.")
@account_option
@click.option("--zone", help="Zone id or name; default: it is looked for in the account's zones.")
async def set_(
    access: Access, certificate: str, *, no_renewal: bool, account: str | None, zone: str | None, **wanted: object
) -> Row | str:
    """Say how a certificate is renewed by itself."""
    if no_renewal is (wanted["renew_with"] is not None) or (no_renewal and any(wanted.values())):
        raise click.UsageError(
            "say --renew-with, perhaps with --days-before or --fraction and --new-key; or --no-renewal"
        )
    if wanted["days_before"] is not None and wanted["fraction"] is not None:
        raise click.UsageError("say --days-before or --fraction, not both: one of them says when")
    scope, found = await access_.find_certificate(access, await access_.places(access, account, zone), certificate)
    if no_renewal:
        await access.remove_renewal(scope, UUID(found.id))
        return f"certificate {found.id} is renewed no more by itself"
    wanted["percent_before"] = wanted.pop("fraction")
    body = msgspec.json.encode({name: value for name, value in wanted.items() if value is not None})
    rule = (await access.set_renewal(scope, UUID(found.id), body)).keystead_renewal
    return {"id": found.id, **(_renewal(rule) if rule else {})}


@terminal.command(certificate, "renewals")
@click.option("--zone", help="Zone id or name; default: all.")
async def renewals(services: Services, zone: str | None) -> Sequence[Row]:
    """List the certificates that are renewed by themselves, and what they wait for, next first."""
    zone_id = (await zones.find(services.db, zone)).id if zone else None
    by_id = {each.id: each for each in await certificates.for_operator(services.db, zone_id)}
    return [
        {"id": str(found.id), "hosts": terminal.some(found.hosts), **_renewal(renewal.object_(found, rule))}
        for rule in await rules.for_operator(services.db, zone_id)
        if (found := by_id.get(rule.certificate_id))
    ]


@access_.command(certificate, "delete", json=False)
@click.argument("certificate")
@account_option
@click.option("--zone", help="Zone id or name; default: it is looked for in the account's zones.")
async def delete(access: Access, certificate: str, account: str | None, zone: str | None) -> str:
    """Delete a certificate, its history and, if that was uploaded with it, its key."""
    among = await access_.places(access, account, zone)
    scope, found = await access_.find_certificate(access, among, certificate)
    await access.delete_certificate(scope, UUID(found.id))
    return f"deleted certificate {found.id}"


@access_.command(certificate, "match")
@_files
@account_option
@click.option("--zone", help="Zone id or name; default: the account's own list, and its zones.")
async def match(access: Access, files: Sequence[str], account: str | None, zone: str | None) -> Row:
    """Say which CSR the certificate in PEM FILES belongs to, by its public key; nothing is changed."""
    csr = await _csr_of(access, await access_.places(access, account, zone), _read(files))
    return {
        "custom_csr_id": csr.id,
        "name": csr.name,
        "common_name": csr.common_name,
        "sans": terminal.some(csr.sans),
        "key_type": csr.key_type.value,
        "created_on": f"{csr.created_at[:19]}Z",
    }


def _read(names: Sequence[str]) -> str:
    return "\n".join(terminal.read(name, pem.Kind.CERTIFICATE) for name in names)


def _hosts(sent: Certificates) -> list[str]:
    """The hosts of the certificates, each once; those of CAs have none."""
    return [*dict.fromkeys(host for each in sent for host in chains.facts(each).hosts)]


async def _csr_of(access: Access, among: Sequence[Scope], text: str) -> CustomCsr:
    """The CSR with the key of a certificate in the text, among those with one of its hosts; raises NotFound."""
    sent = chains.read(text)
    wanted = set(map(chains.spki_digest, sent))
    for host in _hosts(sent)[:_HOSTS_TRIED]:
        for scope in among:
            for csr in await access.csrs(scope, CsrQuery(san=host)):
                if pkix.spki_sha256(csr.csr) in wanted:
                    return csr
    raise NotFound("no custom CSR with a name of this certificate has its key; name it with --csr, or see --zone")


def _body(text: str, csr_id: str) -> bytes:
    return msgspec.json.encode({"certificate": text, "custom_csr_id": csr_id})


def _again(csr: CustomCsr) -> bytes:
    """The request that makes a CSR like this one, with a new key."""
    given = msgspec.to_builtins(csr)
    return msgspec.json.encode(
        {name: given[name] for name in given.keys() - {"id", "created_at", "account_tag", "csr"}}
    )


def _uploaded(certificate: CustomCertificate) -> Row:
    return {
        "id": certificate.id,
        "zone_id": certificate.zone_id,
        "hosts": terminal.some(certificate.hosts),
        "issuer": certificate.issuer,
        "status": certificate.status.value,
        "expires_on": certificate.expires_on,
        "custom_csr_id": certificate.custom_csr_id,
    }


def _certificate(certificate: Certificate) -> Row:
    now = datetime.now(UTC)
    return {
        "id": str(certificate.id),
        "zone_id": certificate.zone_id.hex,
        "hosts": terminal.some(certificate.hosts),
        "status": certificate.status(now).value,
        "expires_on": terminal.shown(certificate.not_after),
        "days_left": (certificate.not_after - now).days,
        "custom_csr_id": str(certificate.custom_csr_id) if certificate.custom_csr_id else None,
    }


def _superseded(version: Superseded) -> Row:
    return {
        "hosts": terminal.some(version.hosts),
        "issuer": version.issuer,
        "expires_on": terminal.shown(version.not_after),
        "uploaded_on": terminal.shown(version.uploaded_at),
        "superseded_on": terminal.shown(version.superseded_at),
        "custom_csr_id": str(version.custom_csr_id) if version.custom_csr_id else None,
    }


def _renewal(rule: RenewalRule) -> Row:
    return {
        "renew_with": rule.renew_with,
        "state": rule.state.value,
        "renews_on": f"{rule.renews_on[:19]}Z",
        "new_key": rule.new_key.value,
        "custom_csr_id": rule.custom_csr_id,
        "problem": rule.problem,
    }
