import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageFont

import handwriting
from emnist_dali import load_classifier, read_text
from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.data import idx
from emnist_dali.data.emnist import file_name
from emnist_dali.deploy import segment
from emnist_dali.deploy.emnist_style import to_emnist_style
from emnist_dali.deploy.ink import extract_ink, without_rules
from emnist_dali.deploy.reading import (
    ALL,
    find_boxes,
    find_writing,
    read_boxes,
    read_writing,
    restore,
    restricted,
    to_allowed,
)

DIGITS = "0123456789"
CLASSES = (*DIGITS, "A", "B", "a")


class Blind:
    """Takes everything for the first class, with certainty."""

    name, classes, shape, converted = "blind", CLASSES, (28, 28), True
    thresholds = typicality = None

    def probabilities(self, images):
        return np.tile(np.eye(1, len(CLASSES), dtype=np.float32), (len(images), 1))


def page_of(*lines: str, size: int = 60) -> Image.Image:
    """Characters of Aileron, which comes with Pillow, each in a cell of its own; a space takes a cell."""
    font = ImageFont.load_default(size)
    image = Image.new("L", (2 * size * (2 + max(map(len, lines))), 2 * size * (1 + len(lines))), 240)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            draw.text(((1 + 0.9 * column) * size, (1 + 2 * row) * size), character, font=font, fill=30)
    return image


def boxes_of(reading):
    return [[character.box for character in line] for line in reading.lines]


def test_lines_and_characters_are_found_in_reading_order():
    reading = read_writing(find_writing(page_of("ABCDE", "FGH", "KLMN")), Blind())
    assert [len(line) for line in reading.lines] == [5, 3, 4]
    boxes = boxes_of(reading)
    assert all(left[0] < right[0] for line in boxes for left, right in pairwise(line))
    bottoms = [max(box[3] for box in line) for line in boxes]
    assert bottoms[0] < min(box[1] for box in boxes[1])
    assert bottoms[1] < min(box[1] for box in boxes[2])


def test_boxes_hold_the_ink_of_their_characters():
    picture = page_of("ABC")
    (line,) = boxes_of(read_writing(find_writing(picture), Blind()))
    ink = np.asarray(picture) < 128
    covered = np.zeros_like(ink)
    for left, top, right, bottom in line:
        covered[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
    assert not (ink & ~covered).any()
    assert covered.sum() < 3 * 50 * 60


def test_boxes_in_a_jpeg_that_is_decoded_at_half_its_size_are_in_its_own_pixels(tmp_path):
    page = page_of("ABC")
    boxes = boxes_of(read_writing(find_writing(page), Blind()))
    scale = 8192 / page.width
    large = page.resize((8192, round(scale * page.height)))
    canvas = Image.new("L", (8192, 6145), 240)
    canvas.paste(large)
    canvas.save(tmp_path / "large.jpg")
    found = boxes_of(read_text(tmp_path / "large.jpg", Blind()))
    np.testing.assert_allclose(np.array(found) / scale, boxes, atol=2)


def test_gaps_of_a_character_are_spaces():
    assert read_writing(find_writing(page_of("HHH HH", "HHHHHH")), Blind()).text == "000 00\n000000"


def test_the_dot_of_an_i_belongs_to_it():
    reading = read_writing(find_writing(page_of("HiHjH")), Blind())
    assert len(reading.lines[0]) == 5


@pytest.mark.parametrize("degrees", [-4, 3])
def test_a_skewed_page_is_read_as_the_upright_one(degrees):
    skewed = page_of("HEHEHEH", "HHEEHHE").rotate(degrees, Image.Resampling.BICUBIC, fillcolor=240)
    assert [len(line) for line in read_writing(find_writing(skewed), Blind()).lines] == [7, 7]


@pytest.mark.parametrize("level", [40, 150, 200])
def test_ruled_lines_are_no_writing(level):
    plain = page_of("ABCD", "EFGH")
    ruled = plain.copy()
    draw = ImageDraw.Draw(ruled)
    for y in range(30, ruled.height, 40):
        draw.line((0, y, ruled.width, y), fill=level, width=2)
    ruled = Image.fromarray(np.minimum(np.asarray(ruled), np.asarray(plain)))
    assert [len(line) for line in read_writing(find_writing(ruled), Blind()).lines] == [4, 4]


def test_strokes_that_cross_a_rule_stay():
    ink = np.zeros((120, 200), np.float32)
    ink[20:100, 96:104] = 1
    ruled = ink.copy()
    ruled[60:62] = 1
    np.testing.assert_allclose(without_rules(ruled, 4), ink, atol=0.01)


def test_a_page_without_ink_has_no_text():
    assert read_writing(find_writing(Image.new("L", (300, 200), 230)), Blind()) == read_writing(
        find_writing(Image.new("L", (5, 5))), Blind()
    )
    assert read_writing(find_writing(Image.new("L", (300, 200), 230)), Blind()).text == ""


def test_a_page_of_specks_is_no_writing_and_ends():
    pixels = np.full((900, 1200), 235, np.uint8)
    rng = np.random.default_rng(0)
    pixels[rng.integers(0, 900, 20_000), rng.integers(0, 1200, 20_000)] = 20
    writing = find_writing(Image.fromarray(pixels))
    assert len(writing.glyphs) <= 4 * segment.MAX_PIECES


def test_shadows_with_hard_edges_and_a_desk_are_no_ink():
    scene = np.full((200, 240), 220.0)
    scene[:, 150:] *= 0.5
    scene[:, :20] = 40
    assert extract_ink(scene.astype(np.float32), 1, reach=100) is None
    scene[60:140, 80:86] *= 0.3
    ink = extract_ink(scene.astype(np.float32), 1, reach=100) > 0.5
    assert ink[60:140, 80:86].mean() > 0.9
    assert ink.mean() < 0.02


def form_of(n: int, filled: set[int], lines: bool = True) -> Image.Image:
    image = Image.new("L", (60 * n + 80, 140), 235)
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 30, 40 + 60 * n, 100), outline=60, width=2)
    for k in range(1, n if lines else 1):
        draw.line((40 + 60 * k, 30, 40 + 60 * k, 100), fill=60, width=2)
    for k in filled:
        draw.text((57 + 60 * k, 38), "8", font=ImageFont.load_default(44), fill=20)
    return image


@pytest.mark.parametrize("lines", [True, False])
def test_each_box_of_a_form_is_read_and_empty_ones_are_spaces(lines):
    form = find_boxes(form_of(6, {0, 1, 4}, lines), 6)
    assert form.glyphs.any((1, 2)).tolist() == [True, True, False, False, True, False]
    reading = read_boxes(form, Blind())
    assert reading.text == "00  0"
    for k, character in enumerate(reading.lines[0]):
        assert abs(character.box[0] - (40 + 60 * k)) <= 3
        assert abs(character.box[2] - (100 + 60 * k)) <= 3


def test_a_form_with_another_number_of_boxes_is_refused(tmp_path):
    form_of(6, {0}).save(tmp_path / "form.png")
    page_of("ABCD").save(tmp_path / "page.png")
    form_of(1, set()).resize((500, 140)).save(tmp_path / "frame.png")
    with pytest.raises(UserError, match=r"form\.png shows 6 boxes, not 5"):
        read_text(tmp_path / "form.png", Blind(), boxes=5)
    with pytest.raises(UserError, match=r"page\.png shows no row of 4 boxes"):
        read_text(tmp_path / "page.png", Blind(), boxes=4)
    with pytest.raises(UserError, match=r"frame\.png shows no row of 400 boxes"):
        read_text(tmp_path / "frame.png", Blind(), boxes=400)
    with pytest.raises(UserError, match="3 characters for 6 boxes"):
        read_text(tmp_path / "form.png", Blind(), boxes=6, pattern="9-99")


def test_only_allowed_characters_are_possible():
    allowed = to_allowed(Blind(), "0-2A").anywhere
    assert [CLASSES[i] for i in np.flatnonzero(allowed)] == ["0", "1", "2", "A"]
    given = restricted(np.full(len(CLASSES), 1 / len(CLASSES), np.float32), allowed)
    np.testing.assert_allclose(given[allowed], 1 / 4)
    assert given[~allowed].max() == 0
    assert to_allowed(Blind()) == ALL


def test_a_pattern_gives_each_place_its_characters():
    allowed = to_allowed(Blind(), pattern="9A-*")
    assert ["".join(np.array(CLASSES)[place]) for place in allowed.places] == [DIGITS, "ABa", "".join(CLASSES)]
    reading = read_writing(find_writing(page_of("HHH")), Blind(), allowed)
    assert restore(reading, "9A-*").text == "0A-0"


def test_a_line_of_another_length_is_read_without_the_pattern():
    allowed = to_allowed(Blind(), pattern="A")
    reading = read_writing(find_writing(page_of("HHH", "H")), Blind(), allowed)
    assert restore(reading, "A").text == "000\nA"


@pytest.mark.parametrize(("allow", "pattern"), [("ß", None), (None, "--"), (None, ""), ("A", "99")])
def test_what_no_character_of_the_model_fits_is_refused(allow, pattern):
    with pytest.raises(UserError, match=r"of the model|the model must have"):
        to_allowed(Blind(), allow, pattern)


@pytest.mark.parametrize("character", "1LHT-")
@pytest.mark.parametrize("pen", [4, 7])
def test_a_thin_character_that_spans_the_picture_is_no_rule(character, pen):
    lines = {
        "1": [(150, 22, 150, 278)],
        "L": [(40, 22, 40, 278), (40, 278, 278, 278)],
        "H": [(40, 22, 40, 278), (260, 22, 260, 278), (40, 150, 260, 150)],
        "T": [(22, 40, 278, 40), (150, 40, 150, 278)],
        "-": [(22, 150, 278, 150)],
    }
    picture = Image.new("L", (300, 300), 235)
    for line in lines[character]:
        ImageDraw.Draw(picture).line(line, fill=30, width=pen)
    drawn = np.asarray(picture) < 128
    found = to_emnist_style(picture) > 100
    for axis in (0, 1):  # the same extent, in 24 of the 28 pixels for the longer side
        expected = np.ptp(np.flatnonzero(drawn.any(axis))) / 256 * 24
        assert np.ptp(np.flatnonzero(found.any(axis))) == pytest.approx(expected, abs=3)


def test_rows_of_large_letters_in_a_thin_pen_are_no_rules():
    picture = Image.new("L", (500, 150), 235)
    for x in range(40, 480, 110):
        for line in ((x, 25, x, 125), (x + 60, 25, x + 60, 125), (x, 75, x + 60, 75)):
            ImageDraw.Draw(picture).line(line, fill=30, width=3)
    assert [len(line) for line in read_writing(find_writing(picture), Blind()).lines] == [4]


def test_a_model_of_other_images_reads_no_text(tmp_path):
    page_of("A").save(tmp_path / "page.png")
    with pytest.raises(UserError, match="reads whole pictures, no text"):
        read_text(tmp_path / "page.png", SimpleNamespace(name="shapes", converted=False, classes=CLASSES))


def test_composed_pages_of_real_images_are_read(real_images, real_folder):
    """Detection is nearly complete, and the error near that of the single images, as `bench/reading.py` measures."""
    images, classifier = real_images, load_classifier()
    labels = idx.read_labels(real_folder / "balanced" / file_name("balanced", "test", "labels"), 47, 0)
    chosen = np.random.default_rng(0).choice(len(images), 50, replace=False)
    single = (classifier.probabilities(images[chosen]).argmax(1) == labels[chosen]).mean()
    page = handwriting.page(images[chosen], np.random.default_rng(1), ruled="lines", skew=2.0, shadow=True)
    reading = read_writing(find_writing(page.image.convert("L")), classifier)
    found = [character.character for line in reading.lines for character in line]
    assert len(found) == 50
    right = np.mean([a == classifier.classes[b] for a, b in zip(found, labels[chosen], strict=True)])
    assert right >= single - 0.08


def test_the_command_reads_pages_and_forms(tmp_path):
    page_of("HELLO", "WORLD").save(tmp_path / "page.png")
    form_of(6, {0, 2}).save(tmp_path / "form.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    page, form, bad = (str(tmp_path / name) for name in ("page.png", "form.png", "bad.png"))
    result = CliRunner().invoke(main, ["predict", "--text", "--json", page])
    (answer,) = json.loads(result.stdout)
    assert (answer["model"], answer["path"]) == ("builtin", page)
    assert [len(line) for line in answer["lines"]] == [5, 5]
    result = CliRunner().invoke(main, ["predict", "--boxes", "6", "--allow", "0-9", form])
    assert result.stdout == "8 8\n"
    result = CliRunner().invoke(main, ["predict", "--text", page, bad])
    assert result.exit_code == 1
    assert "bad.png is not an image" in result.stderr
    result = CliRunner().invoke(main, ["predict", "--text", "--show", "x.png", page])
    assert result.exit_code == 2


def test_a_picture_of_several_characters_is_answered_with_a_warning(tmp_path):
    page_of("HELLO").save(tmp_path / "page.png")
    page_of("H").save(tmp_path / "one.png")
    result = CliRunner().invoke(main, ["predict", "--json", str(tmp_path / "page.png"), str(tmp_path / "one.png")])
    assert result.exit_code == 0
    several, one = json.loads(result.stdout)
    assert several["warning"] == "it shows several characters"
    assert "page.png: it shows several characters" in result.stderr
    assert one["warning"] is None
