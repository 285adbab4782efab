"""`tenor train` and `tenor evaluate`: run the recipes of `python -m training`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli.extras import require_extras
from services.cli.output import exit_on_error

app = typer.Typer()

_PASS_OPTIONS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(
    context_settings=_PASS_OPTIONS_ON,
    epilog="Example: `tenor train training/configs/compact.yaml --data DATA --cache CACHE --out RUN`",
)
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The recipe's options, as YAML.")],
) -> None:
    """Train a model. The options after CONFIG are the recipe's: see `python -m training train --help`."""
    _run_recipe("train", str(config), *context.args)


@app.command(
    context_settings=_PASS_OPTIONS_ON,
    epilog="Example: `tenor evaluate --data DATA --cache CACHE --runs [RUN] --out REPORT`",
)
def evaluate(context: typer.Context) -> None:
    """Evaluate trained models. All options are the recipe's: see `python -m training evaluate --help`."""
    _run_recipe("evaluate", *context.args)


def _run_recipe(name: str, *arguments: str) -> None:
    """Replace this process with `python -m training`, whose exit status becomes the command's."""
    with exit_on_error():
        require_extras("training")
    os.execv(sys.executable, [sys.executable, "-m", "training", name, *arguments])
