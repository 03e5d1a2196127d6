import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageChops, ImageFilter

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import load as load_source
from emnist_dali.deploy import predict as module
from emnist_dali.deploy.decoder import decode
from emnist_dali.deploy.predict import format_table, predict
from emnist_dali.runs.classifier import load_classifier
from emnist_dali.training.session import train

from ..deploy.test_emnist_style import noisy, picture_of
from ..training_runs import quick

CLASSES = "0123456789Aa"


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder with <character>.png for each class, in Aileron, which is not among the training fonts."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for character in CLASSES:
        picture_of(character).save(folder / f"{character}.png")
    return folder


def run(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["predict", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def count_correct(answers) -> int:
    return sum(answer["character"] == Path(answer["path"]).stem for answer in answers)


def test_characters_of_another_font_are_read(trained_run, pictures):
    answers, failed = predict(trained_run, [str(pictures)], 3, None)
    assert failed == []
    assert [answer["path"] for answer in answers] == [str(pictures / f"{c}.png") for c in CLASSES]
    assert count_correct(answers) >= 9  # 11
    for answer in answers:
        best = answer["top"]
        assert len(best) == 3
        assert (answer["character"], answer["probability"]) == (best[0]["character"], best[0]["probability"])
        assert 1 >= best[0]["probability"] >= best[1]["probability"] >= best[2]["probability"] > 0
        assert sum(each["probability"] for each in best) <= 1 + 1e-6


SPOILT = {
    "rotated by 10°": lambda image: image.rotate(10, Image.Resampling.BICUBIC, fillcolor=255),
    "rotated by -10°": lambda image: image.rotate(-10, Image.Resampling.BICUBIC, fillcolor=255),
    "noisy": noisy,
    "inverted": ImageChops.invert,
    "noisy and inverted": lambda image: noisy(ImageChops.invert(image)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
    "small": lambda image: image.reduce(4),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_rotated_noisy_and_inverted_pictures_are_read(trained_run, pictures, spoil):
    for path in pictures.iterdir():
        spoil(Image.open(path)).save(path)
    assert count_correct(predict(trained_run, [str(pictures)], 1, None)[0]) >= 8  # 11


def test_polarity_and_transparency_do_not_change_the_answers(trained_run, pictures):
    expected, _ = predict(trained_run, [str(pictures)], 12, None)
    for path in pictures.iterdir():
        ink = ImageChops.invert(Image.open(path))
        transparent = Image.new("RGBA", ink.size, "white")
        transparent.putalpha(ink)
        transparent.save(path)
    found, _ = predict(trained_run, [str(pictures)], 12, None)
    for one, other in zip(expected, found, strict=True):
        assert one["character"] == other["character"]
        assert one["probability"] == pytest.approx(other["probability"], abs=0.03)


def test_enlarged_and_inverted_images_are_read_as_they_are(trained_run, folder, tmp_path):
    images = Shards(folder, "test").images(np.arange(48))
    for i, image in enumerate(images):
        Image.fromarray(255 - image).resize((112, 112), Image.Resampling.BICUBIC).save(tmp_path / f"{i:02}.png")
    answers, _ = predict(trained_run, [f"{tmp_path}/*.png"], 1, None)
    direct = load_classifier(trained_run).probabilities(images).argmax(1)
    assert sum(answer["character"] == CLASSES[i] for answer, i in zip(answers, direct, strict=True)) >= 43


def test_files_folders_and_globs(trained_run, pictures):
    (pictures / ".hidden.png").write_bytes(b"no image")
    (pictures / "Thumbs.db").write_bytes(b"no image")
    (pictures / "below").mkdir()
    picture_of("3").save(pictures / "below" / "3.jpg")
    picture_of("4").save(pictures / "[4].png")

    def read(*arguments):
        answers, failed = predict(trained_run, arguments, 1, None)
        assert failed == []
        return [str(Path(answer["path"]).relative_to(pictures)) for answer in answers]

    whole = sorted(["[4].png", *(f"{character}.png" for character in CLASSES)])
    assert read(str(pictures)) == whole
    assert read(f"{pictures}/[0-2].png") == ["0.png", "1.png", "2.png"]
    assert read(f"{pictures}/[4].png") == ["[4].png"]
    assert read(f"{pictures}/7.png", f"{pictures}/be*") == ["7.png", "below/3.jpg"]


def test_unreadable_files_are_named_and_the_rest_is_answered(trained_run, pictures):
    for path in list(pictures.iterdir())[3:]:
        path.unlink()
    bad = {
        "broken.png": (pictures / next(pictures.iterdir()).name).read_bytes()[:60],
        "empty.jpg": b"",
        "notes.txt": b"no image",
        "line\nbreak.png": b"",
        os_name(b"\xff.png"): b"",
    }
    for name, content in bad.items():
        (pictures / name).write_bytes(content)
    Image.new("L", (50, 50), 200).save(pictures / "blank.png")
    code, out, err = run(trained_run, pictures, "nowhere.png", pictures / "*.gif", "--json")
    assert code == 1
    assert len(json.loads(out)) == 3
    lines = err.splitlines()
    assert len(lines) == len(bad) + 3
    assert all(line.endswith(".") for line in lines)
    for name in ("broken.png", "empty.jpg", "notes.txt", r"line\nbreak.png", r"\udcff.png", "*.gif", "nowhere.png"):
        assert sum(name in line for line in lines) == 1
    assert "blank.png shows no character" in err


def os_name(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def test_no_readable_files(trained_run, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    code, out, err = run(trained_run, tmp_path, "--json", "--show", tmp_path / "shown.png")
    assert (code, json.loads(out)) == (1, [])
    assert "notes.txt is not an image of a known format" in err
    assert not (tmp_path / "shown.png").exists()


def test_the_command_prints_json_or_lines(trained_run, pictures):
    answers, _ = predict(trained_run, [str(pictures)], 20, None)
    assert len(answers[0]["top"]) == 12
    code, out, _ = run(trained_run, pictures, "--top", 20, "--json")
    assert (code, json.loads(out)) == (0, answers)
    code, out, _ = run(trained_run, pictures, "--top", 2)
    assert (code, len(out.splitlines())) == (0, 12)
    for line, answer in zip(out.splitlines(), answers, strict=True):
        assert line.startswith(answer["path"])
        assert line.count("%") == 2
        assert f"{answer['character']} {100 * answer['probability']:5.1f} %" in line
    assert format_table(answers).count("%") == 144


def test_photographs_are_rotated_as_their_exif_says(tmp_path):
    upright, turned = picture_of("4"), Image.Exif()
    turned[0x0112] = 6
    upright.save(tmp_path / "a.jpg")
    upright.rotate(90, expand=True).save(tmp_path / "b.jpg", exif=turned)
    images = [decode((tmp_path / name).read_bytes(), (28, 28), True).image for name in ("a.jpg", "b.jpg")]
    assert np.abs(images[0].astype(int) - images[1]).mean() < 1


def test_show_draws_each_picture_its_glyph_and_the_answer(trained_run, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHOWN", 7)
    (pictures / "0.png").rename(pictures / "$0^{.png")  # not to be rendered as mathematics
    shown = tmp_path / "shown.png"
    assert run(trained_run, pictures, "--show", shown)[0] == 0
    with Image.open(shown) as image:
        assert (image.format, image.width / image.height) == ("PNG", pytest.approx(5 * 3.2 / (2 * 2.2), rel=0.01))
        pixels = np.asarray(image.convert("L"))
    # In each cell, dark on light to the left and light on dark to the right; the last three cells are empty.
    high, wide = pixels.shape[0] // 2, pixels.shape[1] // 5
    for i in range(10):
        cell = pixels[i // 5 * high :, i % 5 * wide :][int(0.4 * high) : int(0.9 * high), :wide]
        left, right = (np.median(half) for half in np.array_split(cell, 2, axis=1))
        assert (left > 200, right < 50) == (True, i < 7)


def test_show_only_replaces_files_of_this_project(trained_run, pictures, tmp_path, monkeypatch):
    shown, picture = tmp_path / "new" / "shown.png", str(pictures / "A.png")
    for _ in range(2):
        predict(trained_run, [picture], 1, shown)
    content = Path(picture).read_bytes()
    monkeypatch.setattr("emnist_dali.deploy.predict.load_classifier", lambda path: pytest.fail("work was done"))
    with pytest.raises(UserError, match=r"A\.png already exists and was not written by emnist-dali"):
        predict(trained_run, [picture], 1, Path(picture))
    assert Path(picture).read_bytes() == content


def test_own_images_are_resized_as_they_were_for_training(tmp_path):
    random = np.random.default_rng(0)
    own = tmp_path / "own"
    for part, n in (("train", 40), ("test", 8)):
        for name, level in (("bright", 160), ("dark", 0)):
            (own / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = (random.integers(0, 90, (30, 50, 3)) + level).astype(np.uint8)
                Image.fromarray(pixels).save(own / part / name / f"{i}.png")
    source = load_source("own", str(own), tmp_path, size=20)
    pack(source, "own", tmp_path / "data" / "own")
    config = quick(tmp_path / "data", tmp_path / "run", source=str(own), equalize=False, epochs=8, batch_size=8)
    path = train(config.override({"split": "own"})).path

    classifier = load_classifier(path)
    assert (classifier.converted, classifier.shape) == (False, (20, 20))
    files = sorted((own / "test" / "bright").iterdir())
    images = [decode(file.read_bytes(), classifier.shape, classifier.converted).image for file in files]
    assert {image.tobytes() for image in images} <= {image.tobytes() for image in source.parts["test"].images}
    answers, failed = predict(path, [str(own / "test" / name) for name in ("bright", "dark")], 2, None)
    assert failed == []
    assert count_correct([{**each, "path": Path(each["path"]).parent.name} for each in answers]) >= 14
    blank = tmp_path / "blank.png"
    Image.new("L", (50, 50), 250).save(blank)
    assert predict(path, [str(blank)], 1, None)[0][0]["character"] == "bright"


def test_a_folder_without_a_model_is_refused(tmp_path):
    code, out, err = run(tmp_path, tmp_path)
    assert (code, out) == (1, "")
    assert f"{tmp_path} is neither a model nor a picture" in err
