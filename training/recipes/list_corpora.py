"""The recipe `list_corpora`: prints the corpora that have a loader, with their licences, as a table in Markdown."""

from training.data.registry import CORPORA, Corpus


def list_corpora() -> None:
    """Print a table of the corpora: their folder, languages, categories, licence, commercial use and source."""
    print(corpus_table())


def corpus_table() -> str:
    """Returns the table in Markdown."""
    head = ["corpus", "folder", "languages", "categories", "licence", "commercial use", "where to get it"]
    rows = [head, ["---"] * len(head), *(_row(name, corpus) for name, corpus in CORPORA.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, corpus: Corpus) -> list[str]:
    categories = sorted({category for category in corpus.labels.values() if category is not None})
    return [
        f"`{name}`",
        f"`{corpus.folder}`",
        ", ".join(corpus.languages),
        "all seven" if len(categories) == 7 else ", ".join(categories),
        corpus.licence,
        corpus.commercial,
        corpus.source,
    ]
