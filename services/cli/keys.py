"""`tenor keys`: API keys."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table

from services.cli.database import open_database
from services.cli.output import EXIT_FAILURE, Format, Output, exit_on_error, print_error, print_json, print_table
from shared.domain.access import ApiKey, KeyRole

app = typer.Typer()
keys = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Create, list and revoke API keys.")
app.add_typer(keys, name="keys")


@keys.command("create", epilog="Example: `tenor keys create --tenant clinic --role reader --name 'Dr. Rahman'`")
def create_key(
    tenant: Annotated[str, typer.Option(help="The key's tenant, which is created if it does not exist.")],
    role: Annotated[KeyRole, typer.Option(help="`reader` reads; `writer` also sends; `admin` may do everything.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
) -> None:
    """Create an API key and print it. Tenor stores only its hash and cannot show it again."""
    with exit_on_error(), open_database() as database, database.transaction() as transaction:
        tenant_id = transaction.accounts.ensure_tenant(tenant)
        typer.echo(transaction.accounts.create_key(tenant_id, name, role))


@keys.command("list", epilog="Example: `tenor keys list --format json`")
def list_keys(output: Output = Format.table) -> None:
    """List the API keys with their tenants and roles, without the keys themselves."""
    with exit_on_error(), open_database() as database, database.transaction() as transaction:
        found = transaction.accounts.all_keys()
    if output is Format.json:
        print_json([{"tenant": tenant, **key.model_dump(mode="json")} for tenant, key in found])
    else:
        print_table(keys_table(found))


@keys.command("revoke", epilog="Example: `tenor keys revoke 0b0c2f3e-7a8e-4c59-9f27-3f8ad2f1d1a4`")
def revoke_key(key_id: Annotated[UUID, typer.Argument(help="The id of the key, from `tenor keys list`.")]) -> None:
    """Revoke an API key for good. It takes effect within a second."""
    with exit_on_error(), open_database() as database, database.transaction() as transaction:
        if not transaction.accounts.revoke_key(key_id):
            print_error(f"there is no valid key {key_id}")
            raise typer.Exit(EXIT_FAILURE)


def keys_table(tenants_and_keys: Sequence[tuple[str, ApiKey]]) -> Table:
    """Return the table of `tenor keys list`."""
    table = Table("id", "tenant", "name", "role", "state")
    for tenant, key in tenants_and_keys:
        state = "valid" if key.revoked_at is None else f"revoked {key.revoked_at:%Y-%m-%d}"
        table.add_row(str(key.id), tenant, key.name, key.role.value, state)
    return table
