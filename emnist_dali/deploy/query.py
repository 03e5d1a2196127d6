"""What the parameters of a POST /predict ask for."""

from collections.abc import Mapping
from typing import NamedTuple

from ..core.errors import UserError
from ..runs.classifier import Classifier
from .answers import Question, check_question
from .reading import ALL, Allowed, to_allowed

MAX_BOXES = 1000  # of a form, as for `emnist-dali predict --boxes`
MAX_LENGTH = 1000  # of `allow` and `pattern`


class Query(NamedTuple):
    """`several` characters are read as `reading.read_text` does, one as the `question` says."""

    question: Question
    seen: bool
    several: bool
    boxes: int | None
    allowed: Allowed
    pattern: str | None


def parse_query(query: Mapping[str, str], classifier: Classifier) -> Query:
    """Raises UserError for a parameter with a wrong value, and for those that do not fit the model or one another."""
    top = 5 if (given := _number(query, "top", 1)) is None else given
    seen, text = _flag(query, "seen", "get the model's input"), _flag(query, "text", "read all characters")
    coverage, least = _share(query, "coverage"), _share(query, "min_probability")
    boxes = _number(query, "boxes", 1, MAX_BOXES)
    allow, pattern = query.get("allow"), query.get("pattern")
    for name, value in (("allow", allow), ("pattern", pattern)):
        if value is not None and len(value) > MAX_LENGTH:
            raise UserError(f"{name} has {len(value):,} characters; give {MAX_LENGTH:,} at most.")
    several = text or boxes is not None or pattern is not None
    of_one = {"seen": seen or None, "coverage": coverage, "min_probability": least}
    if several and (asked := [name for name, value in of_one.items() if value is not None]):
        raise UserError(f"{asked[0]} is for images of one character; leave it out with text, boxes and pattern.")
    allowed = to_allowed(classifier, allow, pattern, boxes) if several or allow is not None else ALL
    question = Question(top, allowed.anywhere, coverage, least)
    check_question(question, classifier)
    return Query(question, seen, several, boxes, allowed, pattern)


def _number(query: Mapping[str, str], name: str, least: int, most: int | None = None) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        if least <= int(text) and (most is None or int(text) <= most):
            return int(text)
    except ValueError:
        pass
    span = f"of {least} or more" if most is None else f"from {least} to {most:,}"
    raise UserError(f"{name} is {text[:20]!r}; set it to an integer {span}.")


def _share(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name} is {text[:20]!r}; set it to a number.") from None


def _flag(query: Mapping[str, str], name: str, purpose: str) -> bool:
    text = query.get(name, "0")
    if text not in ("0", "1"):
        raise UserError(f"{name} is {text[:20]!r}; set it to 1 to {purpose}, or leave it out.")
    return text == "1"
