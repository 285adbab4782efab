"""The tables of results and of device figures, on a terminal of 80 columns."""

import re

from rich.table import Table

from benchmarks.device import DeviceFigure
from services.analyzer import Row
from services.cli.analyze import results_table
from services.cli.bench import device_table
from shared.domain.emotion import Modality
from tests.printed_tables import assert_readable, printed


def analysis() -> Table:
    row = Row(
        file="/recordings/2026-11-21_customer_service_call_4711.wav",
        line=None,
        start=0.0,
        end=12.5,
        session=None,
        speaker="Ada",
        text="I have been waiting for an hour and nobody calls me back!",
        language="en",
        language_probability=0.98,
        emotion="anger",
        scores={"anger": 0.9},
        text_only={"anger": 0.8},
        audio_only={"anger": 0.7},
        valence=-0.5,
        confidence=0.9,
        abstained=False,
        incongruence=0.1,
        modalities_used=(Modality.text, Modality.audio),
        baseline_turns=3,
        context_turns=0,
        reason=None,
        level_dbfs=-20.0,
        warnings=(),
    )
    return results_table([row], conversation=True)


def devices() -> Table:
    figure = DeviceFigure(
        encoder="facebook/wav2vec2-xls-r-300m",
        in_flight=256,
        batch_size=16,
        clips_per_s=12.34,
        p50_s=1.234,
        p95_s=2.345,
        flops_per_s=1.5e12,
        share=0.42,
    )
    return device_table([figure])


def test_the_table_of_devices_fits_80_columns_and_breaks_no_word() -> None:
    assert_readable(devices())


def test_the_table_of_turns_fits_80_columns_and_breaks_only_the_names_of_files() -> None:
    lines = printed(analysis()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "text" in lines[2]
    names, *others = zip(*(re.split(r" {3,}", line.strip(), maxsplit=1) for line in lines[4:8]), strict=False)
    assert "".join(names).startswith("2026-11-21_customer_service_call_4711.wav")
    assert "nobody" in str(others)
