"""`python -m training RECIPE --config FILE`: every recipe is a function, its signature the config."""

from jsonargparse import auto_cli

from training.recipes.build_encoders import build_encoders
from training.recipes.cache_features import cache_features
from training.recipes.evaluate import evaluate
from training.recipes.export_bundle import export_bundle
from training.recipes.train import train

RECIPES = {
    "build_encoders": build_encoders,
    "cache_features": cache_features,
    "train": train,
    "evaluate": evaluate,
    "export_bundle": export_bundle,
}

if __name__ == "__main__":
    auto_cli(
        RECIPES,
        as_positional=False,
        prog="python -m training",
        description="Example: python -m training train --config training/configs/compact.yaml "
        "--data DATA --cache CACHE --out runs/compact",
    )
