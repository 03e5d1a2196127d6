"""Answers: prediction sets, refusals, and a warning for what is no character."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.deploy.answers import Question, check_question, to_answer
from emnist_dali.deploy.emnist_style import to_emnist_style
from emnist_dali.runs.classifier import load_classifier
from emnist_dali.runs.prediction_sets import threshold
from emnist_dali.runs.typicality import UNTYPICAL, WARNING

from .test_emnist_style import picture_of

BEST = Question(3)


@pytest.fixture(scope="module")
def builtin():
    return load_classifier()


@pytest.fixture(scope="module")
def usual(builtin):
    """The probabilities that the built-in model gives for an image of an A."""
    return builtin.probabilities(to_emnist_style(picture_of("A"))[None])[0]


@pytest.fixture
def unusual(builtin):
    """Probabilities for a B with a K, a 7 and a 4 behind it, which no image gets."""
    row = np.full(len(builtin.classes), 1e-5, np.float32)
    for character, probability in (("B", 0.7), ("K", 0.15), ("7", 0.1), ("4", 0.05)):
        row[builtin.classes.index(character)] = probability
    return row / row.sum()


def characters(listed):
    return [each["character"] for each in listed]


def test_an_answer_is_json(builtin, usual):
    answer = to_answer(usual, builtin, replace(BEST, coverage=0.99, min_probability=0.1), None)
    assert json.loads(json.dumps(answer)) == answer
    assert list(answer) == ["model", "character", "probability", "top", "set", "typicality", "warning"]
    assert answer["character"] == answer["top"][0]["character"] == "A"


def test_the_set_is_what_reaches_the_threshold(builtin, usual):
    for coverage in (0.9, 0.99, 0.999):
        listed = to_answer(usual, builtin, replace(BEST, coverage=coverage))["set"]
        least = threshold(builtin.thresholds, coverage)
        assert all(each["probability"] >= least for each in listed[1:])
        assert len(listed) == max(1, (usual >= least).sum())
        assert listed[0]["character"] == "A"


def test_a_set_has_only_what_is_allowed(builtin, usual, monkeypatch):
    allowed = np.array([c.isdigit() for c in builtin.classes])
    answer = to_answer(usual, builtin, Question(20, allowed, coverage=0.999))
    assert set(characters(answer["set"] + answer["top"])) <= set("0123456789")
    assert len(answer["top"]) == 10
    assert sum(each["probability"] for each in answer["top"]) == pytest.approx(1)
    monkeypatch.setattr(builtin, "thresholds", [0.0] * 100)  # of a model with few validation images
    assert characters(to_answer(usual, builtin, Question(20, allowed, coverage=0.9))["set"]) == characters(
        answer["top"]
    )


def test_what_is_less_probable_is_refused(builtin, usual):
    highest = float(usual.max())
    assert to_answer(usual, builtin, replace(BEST, min_probability=highest - 1e-4))["character"] == "A"
    refused = to_answer(usual, builtin, replace(BEST, min_probability=highest + 1e-4))
    assert refused["character"] is None
    assert refused["top"] == to_answer(usual, builtin, BEST)["top"]


def test_what_looks_like_no_character_gets_a_warning_and_is_refused_where_that_is_asked_for(builtin, unusual):
    answer = to_answer(unusual, builtin, BEST)
    assert answer["typicality"] < UNTYPICAL
    assert (answer["character"], answer["warning"]) == ("B", WARNING)
    assert to_answer(unusual, builtin, replace(BEST, min_probability=0))["character"] is None


def test_a_warning_of_the_picture_goes_first(builtin, unusual, usual):
    assert to_answer(unusual, builtin, BEST, "it shows two")["warning"] == "it shows two"
    assert to_answer(usual, builtin, BEST)["warning"] is None


def test_a_model_without_them_answers_as_before(builtin, usual, monkeypatch):
    """As runs do that held out few images or none."""
    monkeypatch.setattr(builtin, "typicality", None)
    monkeypatch.setattr(builtin, "thresholds", None)
    answer = to_answer(usual, builtin, replace(BEST, min_probability=0.1))
    assert (answer["character"], answer["typicality"], answer["warning"]) == ("A", None, None)
    with pytest.raises(UserError, match="no prediction sets"):
        check_question(replace(BEST, coverage=0.95), builtin)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working directory with an A and a smiley, which is none."""
    monkeypatch.chdir(tmp_path)
    picture_of("A").save("A.png")
    smiley = Image.new("L", (280, 280), 225)
    draw = ImageDraw.Draw(smiley)
    draw.ellipse((40, 40, 240, 240), outline=40, width=12)
    for box in ((95, 100, 113, 118), (167, 100, 185, 118)):
        draw.ellipse(box, fill=40)
    draw.arc((85, 90, 195, 195), 25, 155, fill=40, width=12)
    smiley.save("smiley.png")


def predict(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def test_the_command_warns_of_a_smiley_and_refuses_it(pictures):
    result = predict("A.png", "smiley.png")
    assert result.exit_code == 0
    assert f"smiley.png: {WARNING}." in result.stderr
    assert "A.png:" not in result.stderr
    refusing = predict("A.png", "smiley.png", "--min-probability", 0.2, "--json")
    assert characters(json.loads(refusing.stdout)) == ["A", None]
    first, second = predict("A.png", "smiley.png", "--min-probability", 0.2).stdout.splitlines()
    assert "?" not in first
    assert second.startswith("smiley.png  ?   ")


def test_a_refused_picture_is_shown_with_a_question_mark(pictures, tmp_path):
    assert predict("smiley.png", "--min-probability", 1, "--show", "shown.png").exit_code == 0
    assert (tmp_path / "shown.png").stat().st_size > 1_000


def test_the_command_prints_sets(pictures):
    lines = [predict("A.png", "--coverage", coverage).stdout for coverage in (0.9, 0.999)]
    assert lines[0].count("%") < lines[1].count("%")
    listed = json.loads(predict("A.png", "--coverage", 0.999, "--json").stdout)[0]["set"]
    assert lines[1].count("%") == len(listed)


@pytest.mark.parametrize("option", [("--coverage", 0.95), ("--min-probability", 0.5)])
def test_they_are_for_single_characters(pictures, option):
    result = predict("--text", "A.png", *option)
    assert result.exit_code == 2
    assert f"{option[0]} is for images of one character" in result.stderr


@pytest.mark.parametrize(
    "option",
    [
        ("--coverage", 0.5),
        ("--coverage", 1),
        ("--coverage", "nan"),
        ("--min-probability", 1.5),
        ("--min-probability", "nan"),
    ],
)
def test_other_numbers_are_refused(pictures, option):
    result = predict("A.png", *option)
    assert result.exit_code != 0
    assert option[0][2:].replace("-", "_") in result.stderr.replace("-", "_")
    assert not result.stdout
