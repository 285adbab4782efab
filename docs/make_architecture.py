"""Draw docs/path-of-a-turn.svg: `python docs/make_architecture.py` from the root of the repository."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

Point = tuple[float, float]

COLOURS = {"api": "#dbe9f6", "worker": "#e3f1dc", "data": "#f6ead3", "client": "#eeeeee"}
LEGEND = {"api": "API process", "worker": "worker process", "data": "storage and broker"}
BOXES: dict[str, tuple[str, str, Point]] = {
    "client": ("client", "client\nchatbot, call centre, clinician", (0, 5)),
    "route": ("api", "route\nservices/api/routes/turns.py", (3, 5)),
    "ingest": ("api", "ingest\nservices/api/ingest.py", (6, 5)),
    "publisher": ("api", "publisher\nservices/api/publisher.py", (9, 5)),
    "database": ("data", "Postgres\nturn, job and message\nin one transaction", (6, 3)),
    "blobs": ("data", "audio\nfolder or S3 bucket", (3, 3)),
    "broker": ("data", "broker\nRedis or Valkey: job ids only", (9, 3)),
    "consumer": ("worker", "consumer\nworkers/consumer.py", (9, 1)),
    "runner": ("worker", "job runner\nworkers/job_runner.py", (6, 1)),
    "models": (
        "worker",
        "analysis\ndecode, transcribe, encode, fuse\nworkers/tasks/analyze_turn.py\nshared/modeling/pipeline.py",
        (3, 1),
    ),
    "webhooks": ("worker", "deliveries\nworkers/delivery_lane.py", (0, 1)),
    "sweeper": ("worker", "sweeper\nworkers/sweeper.py", (12, 3)),
}
ARROWS = [
    ("client", "route", "1  POST"),
    ("route", "ingest", "2"),
    ("ingest", "blobs", "3  audio, if any"),
    ("ingest", "database", "4  store and commit"),
    ("ingest", "publisher", "5"),
    ("publisher", "broker", "6  publish"),
    ("broker", "consumer", "7"),
    ("consumer", "runner", "8"),
    ("runner", "database", "9  claim;  11  store the prediction"),
    ("runner", "models", "10"),
    ("webhooks", "client", "12  turn.succeeded"),
    ("sweeper", "broker", "republish"),
]
WIDTH, HEIGHT = 2.4, 1.0


def draw() -> Figure:
    """Return the picture."""
    figure = Figure(figsize=(14, 6.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-1.4, 13.4), ylim=(0.3, 5.8))
    axes.set_axis_off()
    for kind, label, place in BOXES.values():
        _box(axes, label, place, COLOURS[kind])
    for start, end, label in ARROWS:
        _arrow(axes, BOXES[start][2], BOXES[end][2], label)
    for row, (kind, name) in enumerate(LEGEND.items()):
        axes.text(11, 1.4 - 0.4 * row, name, fontsize=8, va="center", bbox={"facecolor": COLOURS[kind], "pad": 3})
    return figure


def _box(axes: Axes, label: str, place: Point, colour: str) -> None:
    corner = (place[0] - WIDTH / 2, place[1] - HEIGHT / 2)
    axes.add_patch(
        FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.02", facecolor=colour, edgecolor="#555555")
    )
    name, _, rest = label.partition("\n")
    axes.text(place[0], place[1] + 0.27, name, ha="center", va="center", fontsize=9.5, weight="bold")
    axes.text(place[0], place[1] - 0.14, rest, ha="center", va="center", fontsize=7.6)


def _arrow(axes: Axes, start: Point, end: Point, label: str) -> None:
    across, up = _direction(end[0] - start[0]), _direction(end[1] - start[1])
    # A slanted arrow leaves from the lower edge, so that it crosses no box.
    edge = (0.0, up * HEIGHT / 2) if up else (across * WIDTH / 2, 0.0)
    begin, stop = (start[0] + edge[0], start[1] + edge[1]), (end[0] - edge[0], end[1] - edge[1])
    axes.annotate("", stop, begin, arrowprops={"arrowstyle": "-|>", "color": "#333333", "shrinkA": 2, "shrinkB": 2})
    middle = ((begin[0] + stop[0]) / 2, (begin[1] + stop[1]) / 2)
    if up:
        axes.text(middle[0] + 0.08, middle[1], label, fontsize=8, va="center")
    else:
        axes.text(middle[0], middle[1] + 0.1, label, fontsize=8, ha="center", va="bottom")


def _direction(difference: float) -> int:
    return (difference > 0) - (difference < 0)


if __name__ == "__main__":
    # The same picture at every run: no random ids, no date.
    mpl.rcParams["svg.hashsalt"] = "tenor"
    draw().savefig(Path(__file__).parent / "path-of-a-turn.svg", metadata={"Date": None})
