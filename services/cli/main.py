"""The `tenor` command, composed of the command groups of this package.

Each group imports the libraries that only some commands need inside those commands, so that `tenor --help` is fast and
works without them.
"""

import typer

from services.cli import analyze, audit, backup, bench, jobs, keys, serve, simulate, status, training

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="Predict emotions from the text and the audio of conversation turns.",
    epilog="Exit status: 0 success; 1 something failed and stderr says what; 2 wrong command line; "
    "78 Tenor is not set up correctly.",
)
for group in (serve, analyze, status, jobs, keys, audit, backup, training, bench, simulate):
    app.add_typer(group.app)
