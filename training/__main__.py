"""`python -m training RECIPE FILE --option value`: every recipe is a function, its signature the config."""

import sys

from jsonargparse import auto_cli

from training.recipes.build_encoders import build_encoders
from training.recipes.cache_features import cache_features
from training.recipes.classical import classical
from training.recipes.cross_corpus import cross_corpus
from training.recipes.evaluate import evaluate
from training.recipes.export_bundle import export_bundle
from training.recipes.import_checkpoint import import_checkpoint
from training.recipes.import_valence_classifier import import_valence_classifier
from training.recipes.train import train
from training.recipes.transfer import transfer

RECIPES = {
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


def named(arguments: list[str]) -> list[str]:
    """`RECIPE FILE` means `RECIPE --config FILE`."""
    if len(arguments) < 2 or arguments[1].startswith("-"):
        return arguments
    return [arguments[0], "--config", *arguments[1:]]


if __name__ == "__main__":
    auto_cli(
        RECIPES,
        args=named(sys.argv[1:]),
        as_positional=False,
        prog="python -m training",
        description="Example: python -m training train training/configs/compact.yaml "
        "--data DATA --cache CACHE --out runs/compact",
    )
