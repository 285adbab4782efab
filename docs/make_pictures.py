"""Draws docs/analyze.svg, the picture of the README: `python docs/make_pictures.py` from the repository's root."""

from pathlib import Path

from rich.console import Console

from services.analyzer import Analyzer
from services.cli.analyze import results_table
from shared.modeling.model_selection import load_pipeline
from shared.settings import get_settings

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    files = sorted((ROOT / "tests" / "assets").glob("*.ogg"))
    rows = []
    for _, found in Analyzer(load_pipeline(get_settings()), "speaker", None).files(files):
        assert isinstance(found, list), found
        rows += found
    console = Console(record=True, width=110)
    console.print("$ tenor analyze tests/assets/*.ogg", highlight=False)
    console.print(results_table(rows))
    console.save_svg(str(ROOT / "docs" / "analyze.svg"), title="tenor analyze")
