"""`tenor backup` and `tenor restore`: backups of an embedded run."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.extras import require_extras
from services.cli.output import Format, Output, exit_on_error, print_json, stdout
from shared.settings import get_settings

app = typer.Typer()

BackupFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the backup.")]


@app.command(epilog="Example: `tenor backup /mnt/backups/tenor-$(date +%F)`")
def backup(folder: BackupFolder, output: Output = Format.table) -> None:
    """Back up an embedded run to a new folder: the database, the recordings and the API key. Tenor may be running."""
    with exit_on_error():
        require_extras("embedded")
        from services.embedded.backup import write_backup

        manifest = write_backup(get_settings(), folder)
    if output is Format.json:
        print_json(manifest)
    else:
        stdout.print(
            f"{folder} holds the database (migration {manifest.migration}) and {manifest.recordings} recordings."
        )


@app.command(epilog="Example: `TENOR_DATA_DIR=/srv/tenor tenor restore /mnt/backups/tenor-2026-11-28`")
def restore(folder: BackupFolder, output: Output = Format.table) -> None:
    """Restore a backup into an empty data folder (TENOR_DATA_DIR), and migrate its tables to this version.

    It also restores sessions that were deleted after the backup was made: delete them again.
    """
    with exit_on_error():
        require_extras("embedded")
        from services.embedded.backup import restore_backup

        manifest = restore_backup(get_settings(), folder)
    if output is Format.json:
        print_json(manifest)
    else:
        stdout.print(
            f"{get_settings().data_dir} holds the database and {manifest.recordings} recordings "
            f"of {manifest.created_at:%Y-%m-%d %H:%M %Z}. Start Tenor with `tenor run`."
        )
