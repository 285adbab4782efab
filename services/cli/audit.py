"""`tenor audit`: the audit trail of a session."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table

from services.cli.database import open_database
from services.cli.output import Format, Output, exit_on_error, print_json, print_table
from shared.domain.access import AuditEvent

app = typer.Typer()


@app.command(epilog="Example: `tenor audit 5a0e0df1-4f0d-4dd6-a7a8-2b8bb2f5f7a4 --format json`")
def audit(
    session_id: Annotated[UUID, typer.Argument(help="The id of a session, which may have been deleted.")],
    output: Output = Format.table,
) -> None:
    """Show which API keys read a session's turns or deleted it, and when."""
    with exit_on_error(), open_database() as database, database.transaction() as transaction:
        events = transaction.accounts.audit_trail(session_id)
    if output is Format.json:
        print_json(events)
    else:
        print_table(audit_table(events))


def audit_table(events: Sequence[AuditEvent]) -> Table:
    """Return the table of `tenor audit`."""
    table = Table("at", "action", "tenant", "key")
    for event in events:
        table.add_row(f"{event.at:%Y-%m-%d %H:%M:%S %Z}", event.action, event.tenant, str(event.key_id))
    return table
