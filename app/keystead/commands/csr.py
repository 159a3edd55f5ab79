"""`keystead csr`: key pairs and CSRs; PEM is printed for piping."""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import click
import msgspec

from keystead.cloudflare.custom_csrs import CustomCsr
from keystead.commands import access as access_
from keystead.commands import terminal
from keystead.commands.access import Access
from keystead.commands.terminal import Pem, Row
from keystead.csrs.model import CsrQuery
from keystead.x509.keys import KeyType
from keystead.x509.subjects import SubjectDefaults

account_option = click.option("--account", help="Account id, slug or name; default: that of the credentials.")
zone_option = click.option("--zone", help="Zone id or name; default: the account's own list.")


@click.group()
def csr() -> None:
    """Key pairs and their CSRs; the private key stays sealed."""


@access_.command(csr, "create")
@click.argument("common_name")
@click.option("--san", "sans", multiple=True, help="A further hostname; can be repeated. The common name is one, too.")
@click.option(
    "--key", "key_type", type=terminal.choice(KeyType), default="p256v1", show_default=True, help="Kind of key pair."
)
@terminal.subject_options("the subject; default: the account's")
@click.option("--unit", "organizational_unit", help="OU of the subject.")
@click.option("--name", help="A name for people; not in the CSR.")
@click.option("--description", help="A text for people; not in the CSR.")
@account_option
@zone_option
@terminal.out_option
async def create(access: Access, account: str | None, zone: str | None, out: Path | None, **fields: object) -> Pem:
    """Make a key pair and its CSR, and print the CSR in PEM."""
    scope = await access.zone(zone) if zone else await access.account(account)
    sans = msgspec.convert(fields.pop("sans"), tuple[str, ...])
    body = {name: value for name, value in fields.items() if value is not None}
    if any(name not in body for name in SubjectDefaults.__struct_fields__):
        body = {**msgspec.structs.asdict(await access.csr_subject(scope)), **body}
    body["sans"] = [*dict.fromkeys((str(fields["common_name"]), *sans))]
    made = await access.create_csr(scope, msgspec.json.encode(body))
    terminal.print_note(f"made the custom CSR {made.id}")
    return Pem(_row(made), made.csr, out)


@access_.command(csr, "list")
@account_option
@zone_option
@click.option("--common-name", help="Only CSRs with this common name.")
@click.option("--san", help="Only CSRs with this hostname.")
@click.option("--name", help="Only CSRs with this name.")
@click.option("--key", "key_type", type=terminal.choice(KeyType), help="Only CSRs with this kind of key.")
async def list_(access: Access, account: str | None, zone: str | None, **filters: object) -> Sequence[Row]:
    """Show the CSRs of an account's own list, or of a zone, the oldest first; at most 1,000."""
    scope = await access.zone(zone) if zone else await access.account(account)
    found = await access.csrs(scope, msgspec.convert(filters, CsrQuery))
    return [_listed(each) for each in found]


@access_.command(csr, "show")
@click.argument("csr")
@account_option
@click.option("--zone", help="Zone id or name; default: the account's own list, then its zones.")
@click.option("--pem", is_flag=True, help="Print the CSR in PEM.")
@terminal.out_option
async def show(access: Access, csr: str, out: Path | None, *, pem: bool, **where: str | None) -> Row | None:
    """Show a CSR, named by its id."""
    _, found = await access_.find_csr(access, await access_.places(access, where["account"], where["zone"]), csr)
    if not pem and out is None:
        return {name: value for name, value in _row(found).items() if name != "csr"}
    terminal.write(out, found.csr)
    return None


@access_.command(csr, "delete", json=False)
@click.argument("csr")
@account_option
@click.option("--zone", help="Zone id or name; default: the account's own list, then its zones.")
async def delete(access: Access, csr: str, account: str | None, zone: str | None) -> str:
    """Delete a CSR and destroy its private key; refused while a certificate uses the key."""
    scope, found = await access_.find_csr(access, await access_.places(access, account, zone), csr)
    await access.delete_csr(scope, UUID(found.id))
    return f"deleted custom CSR {found.id}"


def _listed(csr: CustomCsr) -> Row:
    return {
        "id": csr.id,
        "common_name": csr.common_name,
        "sans": terminal.some(csr.sans),
        "key_type": csr.key_type.value,
        "name": csr.name,
        "created_on": f"{csr.created_at[:19]}Z",
    }


def _row(csr: CustomCsr) -> Row:
    row = msgspec.to_builtins(csr)
    return {**msgspec.convert(row, dict[str, object]), "sans": list(csr.sans)}
