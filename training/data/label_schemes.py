"""Label schemes: the categories to train on, and the mapping of the corpora's labels to them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from shared.domain.emotion import EKMAN7, LabelSpace, Valence
from training.data.corpora import indonesian, ravdess
from training.data.utterance import Utterance


class LabelScheme(BaseModel):
    """Categories, and the labels that map to them. Utterances whose label is not mapped are left out.

    Attributes:
        space: the categories in the order of the model's outputs.
        mapping: from a label to its category.
        labels: which labels are mapped: the corpora's own, or the categories of `EKMAN7` that the loaders map these
            to.
    """

    model_config = ConfigDict(frozen=True)

    space: LabelSpace
    mapping: Mapping[str, str]
    labels: Literal["own", "ekman7"] = "own"

    @model_validator(mode="after")
    def _maps_to_its_categories(self) -> Self:
        for category in self.mapping.values():
            self.space.index(category)
        return self


SCHEMES: Mapping[str, LabelScheme] = {
    "ekman7": LabelScheme(
        space=EKMAN7, mapping={category: category for category in EKMAN7.categories}, labels="ekman7"
    ),
    # As in the multilingual valence classifier: https://huggingface.co/vocametrix.
    "valence3": LabelScheme(
        space=LabelSpace(name="valence3", categories=tuple(Valence)),
        mapping={
            "anger": "negative",
            "disgust": "negative",
            "fear": "negative",
            "joy": "positive",
            "neutral": "neutral",
            "sadness": "negative",
            "surprise": "positive",
        },
        labels="ekman7",
    ),
    # The categories that IEMOCAP, URDU and Punjabi RASA have in common.
    "four": LabelScheme(
        space=LabelSpace(name="four", categories=("anger", "joy", "neutral", "sadness"), dimensions=("valence",)),
        mapping={category: category for category in ("anger", "joy", "neutral", "sadness")},
        labels="ekman7",
    ),
    "ravdess8": LabelScheme(
        space=LabelSpace(name="ravdess8", categories=tuple(ravdess.LABELS), dimensions=("valence",)),
        mapping={label: label for label in ravdess.LABELS},
    ),
    # The Indonesian model has no class for RAVDESS's calm and surprised.
    "indonesian6": LabelScheme(
        space=LabelSpace(name="indonesian6", categories=tuple(indonesian.LABELS), dimensions=("valence",)),
        mapping={label: label for label in indonesian.LABELS}
        | {
            "angry": "marah",
            "disgust": "jijik",
            "fearful": "takut",
            "happy": "bahagia",
            "neutral": "netral",
            "sad": "sedih",
        },
    ),
}


def scheme_named(name: str | LabelScheme) -> LabelScheme:
    """Returns the scheme of a name, or the given scheme itself.

    Raises:
        ValueError: there is no scheme of that name.
    """
    if isinstance(name, LabelScheme):
        return name
    if name not in SCHEMES:
        raise ValueError(f"{name!r} is not a label scheme: use one of {', '.join(SCHEMES)}, or give one")
    return SCHEMES[name]


def relabel(utterances: Iterable[Utterance], scheme: LabelScheme) -> list[Utterance]:
    """Returns the utterances whose labels the scheme maps, with targets over the scheme's categories.

    Args:
        utterances: as their loaders return them.
        scheme: the scheme.

    Raises:
        ValueError: the scheme maps none of a corpus's labels.
    """
    utterances = list(utterances)
    mapped = [replace(u, target=shares) for u in utterances if (shares := _target(u, scheme)) is not None]
    for corpus in {u.corpus for u in utterances} - {u.corpus for u in mapped}:
        found = sorted({name for u in utterances if u.corpus == corpus for name in u.label_names})
        raise ValueError(f"{scheme.space.name} maps none of {corpus}'s labels: {', '.join(found)}")
    return mapped


def common_categories(scheme: LabelScheme, sides: Sequence[Sequence[Utterance]]) -> LabelScheme:
    """Returns the scheme restricted to the categories that occur on every side.

    Args:
        scheme: the categories to choose from.
        sides: groups of utterances as their loaders return them.

    Raises:
        ValueError: fewer than two categories are left.
    """
    present = [_categories(utterances, scheme) for utterances in sides]
    kept = tuple(name for name in scheme.space.categories if all(name in categories for categories in present))
    if len(kept) < 2:
        found = "; ".join(", ".join(sorted(categories)) for categories in present)
        raise ValueError(f"the sides have fewer than two categories of {scheme.space.name} in common: {found}")
    return scheme.model_copy(
        update={
            "space": scheme.space.model_copy(update={"categories": kept}),
            "mapping": {label: category for label, category in scheme.mapping.items() if category in kept},
        }
    )


def _categories(utterances: Iterable[Utterance], scheme: LabelScheme) -> set[str]:
    labels = (label for u in utterances for label, share in _labels(u, scheme) if share > 0)
    return {scheme.mapping[label] for label in labels if label in scheme.mapping}


def _target(utterance: Utterance, scheme: LabelScheme) -> tuple[float, ...] | None:
    shares = [0.0] * len(scheme.space.categories)
    for label, share in _labels(utterance, scheme):
        if label in scheme.mapping:
            shares[scheme.space.index(scheme.mapping[label])] += share
    total = sum(shares)
    return tuple(share / total for share in shares) if total else None


def _labels(utterance: Utterance, scheme: LabelScheme) -> Sequence[tuple[str, float]]:
    if scheme.labels == "own":
        return [(name, 1.0) for name in utterance.label_names]
    return list(zip(EKMAN7.categories, utterance.target or (0.0,) * len(EKMAN7.categories), strict=True))
