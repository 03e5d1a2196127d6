"""What is answered: about an image of one character the likely ones, and how far they can be trusted; or a text."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..runs.classifier import Classifier
from ..runs.prediction_sets import prediction_set, threshold
from ..runs.typicality import UNTYPICAL, WARNING
from .reading import Reading, restricted


@dataclass(frozen=True)
class Question:
    """`top`: how many characters an answer has. `allowed`, (classes,) bool: which are possible, None for all.

    `coverage`, from 0.9 to 0.999, asks for the `set` that holds the true character in that share of images like the
    model's own. `min_probability` refuses what is less probable, and what looks like no character at all.
    """

    top: int
    allowed: np.ndarray | None = None
    coverage: float | None = None
    min_probability: float | None = None


def check_question(question: Question, classifier: Classifier) -> None:
    """Raises UserError if the model has no sets of that coverage, or for what is no probability."""
    if question.coverage is not None:
        threshold(classifier.thresholds, question.coverage)
    least = question.min_probability
    if least is not None and not 0 <= least <= 1:  # true for NaN, which would refuse nothing
        raise UserError(f"min_probability is {least:g}; set it to a number from 0 to 1.")


def to_answer(
    probabilities: np.ndarray, classifier: Classifier, question: Question, warning: str | None = None
) -> dict[str, Any]:
    """(classes,) probabilities of one image → a dict that JSON can hold.

    `model` is its name; `character` the likeliest, or None if it is refused; `probability` that of the likeliest;
    `top` the likeliest with their probabilities, and `set` those of the prediction set if it was asked for;
    `typicality` as in `runs.typicality`, None for a model that has none; `warning` why the answer may be wrong, or
    None: the given one, or that the image is untypical.
    """
    possible = restricted(probabilities, question.allowed)
    order = np.argsort(-possible, kind="stable")
    count = len(order) if question.allowed is None else int(question.allowed.sum())
    typicality = float(classifier.typicality(probabilities[None])[0]) if classifier.typicality else None
    untypical = typicality is not None and typicality < UNTYPICAL
    least = question.min_probability
    refused = least is not None and (untypical or possible[order[0]] < least)

    def listed(labels: np.ndarray) -> list[dict[str, Any]]:
        return [{"character": classifier.classes[i], "probability": float(possible[i])} for i in labels]

    answer = {
        "model": classifier.name,
        "character": None if refused else classifier.classes[order[0]],
        "probability": float(possible[order[0]]),
        "top": listed(order[: min(question.top, count)]),
    }
    if question.coverage is not None:
        members = prediction_set(possible, threshold(classifier.thresholds, question.coverage))
        answer["set"] = listed(members[:count])
    return {**answer, "typicality": typicality, "warning": warning or (WARNING if untypical else None)}


def to_text_answer(reading: Reading) -> dict[str, Any]:
    """The `text` of an image with several characters, and its `lines` as for `predict.predict_text`."""
    return {"text": reading.text, "lines": [[asdict(character) for character in line] for line in reading.lines]}
