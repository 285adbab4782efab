"""`python -m training RECIPE FILE --option value`: runs a recipe, whose arguments are those of its function."""

import sys
from collections.abc import Callable

from jsonargparse import (
    auto_cli,  # pyright: ignore[reportUnknownVariableType] - its Callable is bare
    set_parsing_settings,
)

from training.recipes.build_encoders import build_encoders
from training.recipes.cache_features import cache_features
from training.recipes.classical import classical
from training.recipes.cross_corpus import cross_corpus
from training.recipes.evaluate import evaluate
from training.recipes.export_bundle import export_bundle
from training.recipes.import_checkpoint import import_checkpoint
from training.recipes.import_valence_classifier import import_valence_classifier
from training.recipes.list_corpora import list_corpora
from training.recipes.train import train
from training.recipes.transfer import transfer

RECIPES: dict[str, Callable[..., None]] = {
    "list_corpora": list_corpora,
    "build_encoders": build_encoders,
    "cache_features": cache_features,
    "train": train,
    "evaluate": evaluate,
    "cross_corpus": cross_corpus,
    "export_bundle": export_bundle,
    "import_checkpoint": import_checkpoint,
    "import_valence_classifier": import_valence_classifier,
    "classical": classical,
    "transfer": transfer,
}


def run_recipe(arguments: list[str]) -> None:
    """Run the recipe that the first argument names. `RECIPE FILE` means `RECIPE --config FILE`."""
    if len(arguments) > 1 and not arguments[1].startswith("-"):
        arguments = [arguments[0], "--config", *arguments[1:]]
    # The help texts of the argument groups are the docstrings of their attributes.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    auto_cli(
        {**RECIPES},
        args=arguments,
        as_positional=False,
        prog="python -m training",
        description="Example: python -m training train training/configs/compact.yaml "
        "--data DATA --cache CACHE --out runs/compact. "
        "`RECIPE --help` lists the arguments of a recipe, `--GROUP.help` those of an optional group.",
    )


if __name__ == "__main__":
    run_recipe(sys.argv[1:])
