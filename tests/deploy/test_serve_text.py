"""POST /predict with several characters in a picture."""

import base64
import io
import json
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from emnist_dali.cli import main
from emnist_dali.deploy import decoder, segment, serve
from emnist_dali.deploy.decoder import _CHARACTER, Decoder
from emnist_dali.deploy.query import MAX_BOXES, MAX_LENGTH
from emnist_dali.deploy.reading import MAX_PLACES
from emnist_dali.runs.classifier import load_classifier

from .test_reading import form_of, page_of
from .test_serve import SECONDS, _WordClassifier, until


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PAGE, FORM = encoded(page_of("HELLO YOU", "12-34")), encoded(form_of(6, {0, 1, 4}))


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


@pytest.fixture(scope="module")
def client(classifier):
    return serve.create_app(classifier).test_client()


@pytest.mark.parametrize(
    ("picture", "query", "arguments"),
    [
        (PAGE, {"text": 1}, ["--text"]),
        (PAGE, {"text": 1, "allow": "A-Z0-9"}, ["--text", "--allow", "A-Z0-9"]),
        (PAGE, {"pattern": "99-99"}, ["--pattern", "99-99"]),
        (FORM, {"boxes": 6, "allow": "0-9"}, ["--boxes", "6", "--allow", "0-9"]),
        (FORM, {"boxes": 6, "pattern": "999/999"}, ["--boxes", "6", "--pattern", "999/999"]),
        (FORM, {"boxes": 5}, ["--boxes", "5"]),
        (FORM, {"allow": "6-8"}, ["--allow", "6-8", "--top", "5"]),
    ],
)
def test_answers_are_those_of_the_command(client, tmp_path, picture, query, arguments):
    (tmp_path / "it.png").write_bytes(picture)
    said = CliRunner().invoke(main, ["predict", "--json", *arguments, str(tmp_path / "it.png")])
    answer = client.post("/predict", query_string=query, data=picture)
    if said.exit_code:
        assert answer.status_code == 400
        assert answer.json["error"].removeprefix("The picture") in said.stderr
        return
    (expected,) = json.loads(said.stdout)
    del expected["path"]
    assert answer.status_code == 200
    assert answer.json == nearly(expected)


def nearly(answer):
    """But for the last digits of the probabilities, which depend on the size of the batch."""
    return json.loads(json.dumps(answer), parse_float=lambda text: pytest.approx(float(text), abs=1e-5))


def test_several_pages_get_their_answers_in_order(client):
    alone = [client.post("/predict?text=1", data=picture).json for picture in (PAGE, FORM)]
    images = [base64.b64encode(picture).decode() for picture in (PAGE, b"no picture", FORM)]
    first, error, last = client.post("/predict?text=1", json={"images": images}).json
    assert [first, last] == nearly(alone)
    assert list(error) == ["error"]


def test_a_page_without_writing_has_no_text(client, classifier):
    blank = encoded(Image.new("L", (300, 200), 230))
    assert client.post("/predict?text=1", data=blank).json == {"model": classifier.name, "text": "", "lines": []}


def test_candidates_pass_through_the_model_in_batches(client, classifier, monkeypatch):
    expected, probabilities, sizes = client.post("/predict?text=1", data=PAGE).json, classifier.probabilities, []

    def count(images):
        sizes.append(len(images))
        return probabilities(images)

    monkeypatch.setattr(classifier, "probabilities", count)
    monkeypatch.setattr(serve, "MAX_BATCH", 4)
    assert client.post("/predict?text=1", data=PAGE).json == nearly(expected)
    assert max(sizes) == 4
    assert len(sizes) > 2


@pytest.mark.parametrize(
    "query",
    [
        {"text": "yes"},
        {"boxes": "0"},
        {"boxes": str(MAX_BOXES + 1)},
        {"boxes": "many"},
        {"text": 1, "seen": 1},
        {"boxes": 6, "coverage": "0.95"},
        {"pattern": "99", "min_probability": "0"},
        {"text": 1, "allow": ""},
        {"allow": "ß"},
        {"pattern": "--"},
        {"pattern": "9" * (MAX_PLACES + 1)},
        {"pattern": "-" * (MAX_LENGTH + 1)},
        {"boxes": 6, "pattern": "99"},
    ],
)
def test_a_wrong_parameter_gets_one_sentence(client, query):
    answer = client.post("/predict", query_string=query, data=FORM)
    assert answer.status_code == 400
    assert list(answer.json) == ["error"]
    assert re.fullmatch(r"[^\n]{10,300}\.", answer.json["error"])


def test_a_model_of_other_images_reads_no_text():
    answer = serve.create_app(_WordClassifier()).test_client().post("/predict?text=1", data=PAGE)
    assert answer.status_code == 400
    assert "reads whole pictures, no text" in answer.json["error"]


def test_a_page_of_specks_ends(client):
    pixels = np.full((900, 1200), 235, np.uint8)
    rng = np.random.default_rng(0)
    pixels[rng.integers(0, 900, 20_000), rng.integers(0, 1200, 20_000)] = 20
    answer = client.post(
        "/predict", query_string={"pattern": "*" * MAX_PLACES}, data=encoded(Image.fromarray(pixels))
    )
    assert answer.status_code == 200
    assert sum(map(len, answer.json["lines"])) <= 4 * segment.MAX_PIECES


def test_a_character_is_answered_while_a_page_is_read(client, monkeypatch):
    go, waiting, decode = threading.Event(), threading.Event(), Decoder._decode

    def slowly(self, content, kind, ticket):
        if kind != _CHARACTER:
            waiting.set()
            assert go.wait(SECONDS)
        return decode(self, content, kind, ticket)

    monkeypatch.setattr(Decoder, "_decode", slowly)
    with ThreadPoolExecutor(1) as pool:
        page = pool.submit(lambda: client.application.test_client().post("/predict?text=1", data=PAGE))
        try:
            assert waiting.wait(SECONDS)
            assert client.post("/predict", data=encoded(page_of("H"))).json["character"] == "H"
            assert not page.done()
        finally:
            go.set()
        assert page.result().status_code == 200


def test_pages_cost_more_than_pictures_of_a_character(monkeypatch):
    go, order = threading.Event(), []

    def slowly(self, content, kind, ours):
        order.append(len(content))
        go.wait(SECONDS)
        raise OSError

    monkeypatch.setattr(Decoder, "_decode", slowly)
    monkeypatch.setattr(decoder, "decoding_cost", len)
    monkeypatch.setattr(decoder, "SMALL", 100)
    worker = Decoder((28, 28), True)
    with ThreadPoolExecutor(4) as pool:
        answers = []
        for size, boxes in ((1, None), (50, None), (60, 8), (5000, -1)):
            asked = (worker, bytes(size)) if boxes == -1 else (worker.find, bytes(size), boxes)
            answers.append(pool.submit(*asked))
            until(lambda: len(order) + len(worker._waiting) + sum(map(Future.done, answers)) == len(answers))
        go.set()
    assert order == [1, 5000, 50, 60]
