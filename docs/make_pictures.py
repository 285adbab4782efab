"""Draws docs/analyze.svg, the picture of the README: `python docs/make_pictures.py` from the repository's root."""

from contextlib import closing
from pathlib import Path

from rich.console import Console

from services.analyzer import Analyzer, InputTurn
from services.cli.analyze import results_table
from services.turn_sources import read_recordings
from shared.audio.sandbox import AudioSandbox
from shared.modeling.model_selection import load_pipeline
from shared.settings import get_settings

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    files = sorted((ROOT / "tests" / "assets").glob("*.ogg"))
    analyzer, rows = Analyzer(load_pipeline(get_settings())), []
    with closing(AudioSandbox()) as audio:
        for _, turn, _ in read_recordings(files, ["speaker"], audio):
            assert isinstance(turn, InputTurn), turn
            rows.append(analyzer.analyze(turn))
    console = Console(record=True, width=110)
    console.print("$ tenor analyze tests/assets/*.ogg", highlight=False)
    console.print(results_table(rows))
    console.save_svg(str(ROOT / "docs" / "analyze.svg"), title="tenor analyze")
