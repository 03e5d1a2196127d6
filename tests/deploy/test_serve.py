import base64
import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import waitress
from click.testing import CliRunner
from PIL import Image

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.deploy import decoder, posted_pictures, serve
from emnist_dali.deploy.decoder import BusyError, Decoder, decode
from emnist_dali.reports.html import png
from emnist_dali.runs.classifier import load_classifier

SECONDS = 60  # only reached if something hangs


@pytest.fixture(scope="module")
def classifier(trained_run):
    return load_classifier(trained_run)


@pytest.fixture(scope="module")
def client(classifier):
    app = serve.create_app(classifier)
    app.config["TESTING"] = True
    return app.test_client()


@pytest.fixture(scope="module")
def pictures(drawn):
    """PNG files of 24 test images as scans: dark on light, 112 × 112."""
    return [scan(image) for image in drawn.parts["test"].images[::4][:24]]


def scan(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(255 - image).resize((112, 112), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def data_url(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


def pixels(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_answers_are_those_of_the_model_for_the_converted_picture(client, classifier, pictures):
    for picture in pictures:
        answer = client.post("/predict?seen=1", data=picture, content_type="image/png").json
        image = decode(picture, classifier.shape, classifier.converted).image
        probabilities = classifier.probabilities(image[None])[0]
        order = np.argsort(-probabilities)[:5]
        assert answer["model"] == classifier.name
        assert answer["character"] == classifier.classes[order[0]]
        assert answer["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert [each["character"] for each in answer["top"]] == [classifier.classes[i] for i in order]
        assert [each["probability"] for each in answer["top"]] == pytest.approx(probabilities[order], abs=1e-5)
        assert np.array_equal(pixels(answer["seen"]), image)


def test_every_form_of_a_request_gets_the_same_answer(client, pictures):
    picture = pictures[0]
    wrapped = base64.encodebytes(picture).decode()  # with line breaks, as base64(1) writes it
    answers = [
        client.post("/predict", data=picture, content_type="image/png"),
        client.post("/predict", data=picture, content_type="application/x-www-form-urlencoded"),  # curl's default
        client.post("/predict", json={"image": data_url(picture)}),
        client.post("/predict", json={"image": wrapped}),
        client.post("/predict", data={"image": (io.BytesIO(picture), "a.png")}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert all(answer.json == answers[0].json for answer in answers)


def test_a_jpeg_and_a_gif_are_read(client, drawn):
    for kind in ("JPEG", "GIF"):
        answer = client.post("/predict", data=scan(drawn.parts["test"].images[0], kind))
        assert answer.status_code == 200, answer.json


@pytest.mark.parametrize(("query", "there"), [("", False), ("?seen=0", False), ("?seen=1", True)])
def test_the_input_of_the_model_is_in_an_answer_that_is_asked_for_it(client, pictures, query, there):
    assert ("seen" in client.post(f"/predict{query}", data=pictures[0]).json) == there
    (answer,) = client.post(f"/predict{query}", json={"images": [data_url(pictures[0])]}).json
    assert ("seen" in answer) == there


def form(*contents):
    return {"data": {"image": [(io.BytesIO(content), f"{i}.png") for i, content in enumerate(contents)]}}


def assert_same(one, other):
    """Equal but for the last digits of the probabilities, which depend on the size of the batch."""
    assert [each["character"] for each in one["top"]] == [each["character"] for each in other["top"]]
    for these, those in zip([one, *one["top"]], [other, *other["top"]], strict=True):
        assert these["probability"] == pytest.approx(those["probability"], abs=1e-5)
    rest = {"probability": None, "top": None}
    assert {**one, **rest} == {**other, **rest}


@pytest.mark.parametrize("kind", ["form", "JSON"])
def test_several_pictures_get_their_answers_in_order_from_one_call_of_the_model(
    client, classifier, pictures, monkeypatch, kind
):
    alone = [client.post("/predict?seen=1&top=3", data=picture).json for picture in pictures]
    calls, probabilities = [], classifier.probabilities

    def count(images):
        calls.append(len(images))
        return probabilities(images)

    monkeypatch.setattr(classifier, "probabilities", count)
    several = form(*pictures) if kind == "form" else {"json": {"images": [data_url(each) for each in pictures]}}
    answer = client.post("/predict?seen=1&top=3", **several)
    assert answer.status_code == 200
    assert calls == [len(pictures)]
    for one, other in zip(answer.json, alone, strict=True):
        assert_same(one, other)


def test_a_bad_picture_gets_its_error_and_spoils_no_other(client, pictures):
    good = [client.post("/predict", data=picture).json for picture in pictures[:2]]
    blank = png(np.zeros((40, 40), np.uint8))
    for bad in ("", "ä", "YSBsZXR0ZXI=", data_url(pictures[0][:60]), blank, 5, None, [], {"image": "x"}):
        images = [data_url(pictures[0]), bad, data_url(pictures[1])]
        answer = client.post("/predict", json={"images": images})
        assert answer.status_code == 200
        first, error, last = answer.json
        assert list(error) == ["error"]
        assert re.fullmatch(r"[^\n]{10,300}\.", error["error"])
        assert_same(first, good[0])
        assert_same(last, good[1])
    first, error, last = client.post("/predict", **form(pictures[0], b"", pictures[1])).json
    assert list(error) == ["error"]
    assert_same(first, good[0])
    assert_same(last, good[1])
    assert [list(each) for each in client.post("/predict", json={"images": ["", ""]}).json] == [["error"]] * 2


def test_as_many_images_as_stated_are_taken_in_one_request(client, pictures):
    many = [data_url(pictures[0])] * posted_pictures.MAX_IMAGES
    assert len(client.post("/predict", json={"images": many}).json) == posted_pictures.MAX_IMAGES
    for too_many in ({"json": {"images": [*many, many[0]]}}, form(*[pictures[0]] * (posted_pictures.MAX_IMAGES + 1))):
        answer = client.post("/predict", **too_many)
        assert answer.status_code == 400
        assert (
            f"{posted_pictures.MAX_IMAGES + 1} images; send 1 to {posted_pictures.MAX_IMAGES} at a time"
            in answer.json["error"]
        )


def test_the_documentation_states_the_limits():
    page = " ".join((Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8").split())
    for statement in (
        f"Up to {posted_pictures.MAX_IMAGES} in a request, {serve.MAX_BODY // 2**20} MiB together",
        f"takes more than {decoder.TIMEOUT} s to decode, a page {decoder.PAGE_TIMEOUT} s",
        f"{serve.MAX_REQUESTS} requests are waiting",
        f"After {posted_pictures.DECODING_TIMEOUT} s no more of the images of one request are decoded",
    ):
        assert statement in page


def test_decoding_the_images_of_a_request_has_an_end(client, pictures, monkeypatch):
    clock = iter([0, 0, posted_pictures.DECODING_TIMEOUT, posted_pictures.DECODING_TIMEOUT + 1])
    monkeypatch.setattr(posted_pictures, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    answers = client.post("/predict", **form(*pictures[:3])).json
    assert ["error" in answer for answer in answers] == [False, False, True]
    assert "another request" in answers[2]["error"]


@pytest.mark.parametrize(("asked", "given"), [("1", 1), ("3", 3), ("12", 12), ("1000", 12)])
def test_top_sets_the_number_of_answers(client, pictures, asked, given):
    top = client.post(f"/predict?top={asked}", data=pictures[0]).json["top"]
    assert len(top) == given
    assert sorted(top, key=lambda each: -each["probability"]) == top


def test_a_set_and_a_refusal_are_asked_for(client, pictures):
    answer = client.post("/predict?coverage=0.999&min_probability=1", data=pictures[0]).json
    assert answer["character"] is None
    assert answer["set"][: len(answer["top"])] == answer["top"][: len(answer["set"])]
    assert "set" not in client.post("/predict", data=pictures[0]).json


def test_concurrent_requests_get_their_own_answers(client, pictures):
    def ask(picture):
        return client.application.test_client().post("/predict?seen=1", data=picture).json

    one_by_one = [ask(picture) for picture in pictures]
    assert len({answer["seen"] for answer in one_by_one}) > 12
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, pictures)) == one_by_one


WRONG = {
    "nothing": {"data": b""},
    "text": {"data": b"a letter", "content_type": "image/png"},
    "half a picture": {"data": png(np.eye(28, dtype=np.uint8)).encode()[:60], "content_type": "image/png"},
    "a blank picture": {"json": {"image": png(np.zeros((40, 40), np.uint8))}},
    "JSON without an image": {"json": {"picture": "abcd"}},
    "JSON with a number": {"json": {"image": 5}},
    "a list": {"json": ["image"]},
    "broken JSON": {"data": b'{"image"', "content_type": "application/json"},
    "deep JSON": {"data": b"[" * 100_000, "content_type": "application/json"},
    "JSON with much else": {"data": b'{"image": [' + b"[]," * 1000 + b"[]]}", "content_type": "application/json"},
    "no base64": {"json": {"image": "ä"}},
    "base64 of text": {"json": {"image": base64.b64encode(b"a letter").decode()}},
    "an image and images": {"json": {"image": "YQ==", "images": ["YQ=="]}},
    "no images": {"json": {"images": []}},
    "images that are no list": {"json": {"images": "YQ=="}},
    "images in an object": {"json": {"images": {"image": "YQ=="}}},
    "a thousand images": {"json": {"images": ["YQ=="] * 1000}},
    "a list as an image": {"json": {"image": ["YQ=="]}},
    "a form without the file": {"data": {"picture": (io.BytesIO(b"x"), "a.png")}},
    "no number": {"query_string": {"top": "many"}},
    "no answers": {"query_string": {"top": "0"}},
    "no coverage": {"query_string": {"coverage": "much"}},
    "a coverage without sets": {"query_string": {"coverage": "0.5"}},
    "a probability above 1": {"query_string": {"min_probability": "80"}},
    "a probability that is none": {"query_string": {"min_probability": "nan"}},
    "neither seen nor unseen": {"query_string": {"seen": "yes"}},
}


@pytest.mark.parametrize("request_", WRONG.values(), ids=WRONG)
def test_invalid_requests_get_one_sentence(client, request_):
    answer = client.post("/predict", **request_)
    assert answer.status_code == 400
    assert list(answer.json) == ["error"]
    assert re.fullmatch(r"[^\n]{10,300}\.", answer.json["error"])


def test_a_busy_server_answers_503(client, pictures, monkeypatch):
    def busy(self, content):
        raise BusyError("Too many pictures wait.")

    monkeypatch.setattr(Decoder, "__call__", busy)
    answer = client.post("/predict", data=pictures[0])
    assert (answer.status_code, answer.json) == (503, {"error": "Too many pictures wait."})
    assert int(answer.headers["Retry-After"]) >= 1


def test_requests_above_the_limit_are_refused_while_the_rest_is_answered(classifier, pictures, monkeypatch):
    monkeypatch.setattr(serve, "MAX_REQUESTS", 2)
    app = serve.create_app(classifier)
    go, inside, decode_now = threading.Event(), [], Decoder.__call__

    def slowly(self, content):
        inside.append(content)
        assert go.wait(SECONDS)
        return decode_now(self, content)

    def ask(**request):
        return app.test_client().post("/predict", **request)

    for _ in range(3):
        assert ask(data=b"").status_code == 400  # takes no place for good
    monkeypatch.setattr(Decoder, "__call__", slowly)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, data=picture) for picture in pictures[:2]]
        try:
            until(lambda: len(inside) == 2)
            refused = ask(data=pictures[2])
            others = [app.test_client().get(path).status_code for path in ("/healthz", "/classes", "/")]
        finally:
            go.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
    assert refused.status_code == 503
    assert refused.json == {"error": "2 requests are waiting; try again later."}
    assert int(refused.headers["Retry-After"]) >= 1
    assert others == [200, 200, 200]
    assert ask(data=pictures[2]).status_code == 200


def test_health_and_classes(client, classifier):
    assert client.get("/healthz").json == {"status": "ok", "model": classifier.name}
    assert client.get("/classes").json == {"model": classifier.name, "classes": list(classifier.classes)}


def test_an_oversized_body_is_refused(client):
    answer = client.post("/predict", data=bytes(serve.MAX_BODY + 1), content_type="image/png")
    assert answer.status_code == 413
    assert "8 MiB" in answer.json["error"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "localhost.evil.example", "", "0"])
def test_other_host_names_are_refused(client, pictures, host):
    assert client.get("/", headers={"Host": host}).status_code == 403
    answer = client.post("/predict", data=pictures[0], headers={"Host": host})
    assert answer.status_code == 403
    assert list(answer.json) == ["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8123", "localhost:80"])
def test_names_of_this_machine_are_accepted(client, pictures, host):
    assert client.get("/", headers={"Host": host}).status_code == 200
    origin = {"Host": host, "Origin": f"http://{host}"}
    assert client.post("/predict", data=pictures[0], headers=origin).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9", "https://127.0.0.1:8123"])
def test_cross_origin_requests_are_refused(client, pictures, origin):
    headers = {"Host": "127.0.0.1:8123", "Origin": origin}
    assert client.post("/predict", data=pictures[0], headers=headers).status_code == 403


def test_http_errors_are_json(client):
    assert client.get("/other").status_code == 404
    answer = client.get("/predict")
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]
    assert list(answer.json) == ["error"]


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert not re.search(r"https?://|src=|@import|url\(", page.text)
    assert client.get("/").headers["Content-Security-Policy"] != policy  # a new nonce each time


@pytest.fixture(scope="module")
def address(classifier):
    server = waitress.create_server(serve.create_app(classifier), host="127.0.0.1", port=0)
    threading.Thread(target=server.run, daemon=True).start()
    return f"http://127.0.0.1:{server.effective_port}"


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 800}, has_touch=True)
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(address)
    yield page
    page.close()
    assert [message for message in messages if "status of 503" not in message] == []  # which the browser logs


def places(page, *points):
    box = page.locator("canvas").bounding_box()
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]


def draw(page, *points):
    first, *others = places(page, *points)
    page.mouse.move(*first)
    page.mouse.down()
    for point in others:
        page.mouse.move(*point, steps=2)
    page.mouse.up()


# With serifs: trained on so few images, the model reads a bare stroke as 1 or 0, depending on torch's threads.
ONE = [(0.38, 0.32), (0.5, 0.2), (0.5, 0.8), (0.36, 0.8), (0.64, 0.8)]
CIRCLE = [(0.5 + 0.2 * np.sin(angle), 0.5 - 0.3 * np.cos(angle)) for angle in np.linspace(0, 2 * np.pi, 17)]


def read(page, character):
    page.wait_for_function("character => document.querySelector('#answer').textContent === character", arg=character)


def test_a_drawn_one_is_read_and_a_circle_is_a_zero(page):
    draw(page, *ONE)
    read(page, "1")
    page.click("#clear")
    draw(page, *CIRCLE)
    read(page, "0")


def test_the_page_shows_five_answers_the_model_and_its_input(page, classifier):
    assert not page.is_visible("#seen")
    draw(page, *CIRCLE)
    read(page, "0")
    rows = page.locator("#top li")
    names, shares = rows.locator("b").all_inner_texts(), rows.locator("span").all_inner_texts()
    assert len(set(names)) == 5
    assert set(names) <= set(classifier.classes)
    assert names[0] == "0"
    numbers = [float(share.removesuffix(" %")) for share in shares]
    assert numbers == sorted(numbers, reverse=True)
    widths = [bar["width"] for bar in map(lambda i: rows.nth(i).locator("i").bounding_box(), range(5))]
    assert len(set(widths)) == 1
    assert page.is_visible("#seen")
    assert page.evaluate("document.querySelector('#seen img').naturalWidth") == 28
    assert f"Model {classifier.name}, 12 classes" in page.inner_text("body")


def state(page):
    """What the page shows, and where."""
    page.wait_for_function("() => document.getAnimations().length === 0")
    ink = "() => canvas.getContext('2d').getImageData(0, 0, 560, 560).data.filter(value => value < 255).length"
    places = {id: page.locator(f"#{id}").bounding_box() for id in ("canvas", "top", "answer")}
    bars = page.evaluate("() => [...document.querySelectorAll('#top i')].map(bar => bar.style.cssText)")
    return page.inner_text("body"), page.evaluate(ink), places, bars, page.is_visible("#seen")


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_clear_resets_the_page(page, way):
    before = state(page)
    assert before[1] == 0
    assert "Use your mouse, pen or finger" in before[0]
    draw(page, *CIRCLE)
    read(page, "0")
    for one, other in zip(before, state(page), strict=True):
        assert one != other or one is before[2]  # nothing moves
    if way == "button":
        page.click("#clear")
    else:
        page.keyboard.press("Escape")
    read(page, "")
    assert state(page) == before


def test_a_finger_draws_and_does_not_scroll(page):
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    first, *others = places(page, *CIRCLE)
    touch("touchStart", first)
    for point in others:
        touch("touchMove", point)
    touch("touchEnd")
    read(page, "0")
    assert page.evaluate("scrollY") == 0


def test_a_click_draws_a_dot(page):
    draw(page, (0.5, 0.5))
    page.wait_for_function("() => document.querySelector('#answer').textContent !== ''")
    assert page.inner_text("#error") == ""


# Of phones from the smallest on, less what a browser's bars take; and of two tablets.
UPRIGHT = [(320, 460), (360, 560), (390, 664), (412, 780), (768, 954)]
WINDOWS = [*UPRIGHT, (568, 250), (600, 375), (640, 280), (667, 331), (750, 330), (915, 350), (1024, 690)]


def assert_fits(page, width, height):
    inner = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert inner[0] <= width
    assert inner[1] <= height
    for each in ("h1", "#clear", "canvas", "#answer", "#seen", "#seen figcaption", "#top li:last-child", "summary"):
        box = page.locator(each).bounding_box()
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
    canvas = page.locator("canvas").bounding_box()
    assert canvas["width"] == pytest.approx(canvas["height"], abs=0.1)
    assert canvas["width"] > 0.6 * min(width, height)
    assert not page.evaluate("""() => {
        const box = id => document.querySelector(id).getBoundingClientRect()
        const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top
        const all = ["header", "canvas", "#answer", "#seen", "#top", "summary"].map(box)
        return all.some((a, i) => all.some((b, j) => i < j && !apart(a, b)))
    }""")


@pytest.mark.parametrize(("width", "height"), WINDOWS)
def test_the_page_fits_a_phone_without_scrolling(browser, address, width, height):
    page = browser.new_page(viewport={"width": width, "height": height}, is_mobile=True, has_touch=True)
    page.goto(address)
    assert_fits(page, width, height)
    draw(page, *CIRCLE)
    read(page, "0")
    assert_fits(page, width, height)
    page.route("**/predict*", lambda route: route.fulfill(json={"error": "The picture shows no character. " * 3}))
    draw(page, *CIRCLE)
    page.wait_for_function("() => document.querySelector('#error').textContent !== ''")
    assert_fits(page, width, height)
    error = page.evaluate("() => [document.querySelector('#error')].map(p => p.scrollHeight - p.clientHeight)[0]")
    assert error <= 0
    page.close()


def choose(page, content):
    page.set_input_files("#file", {"name": "photo.png", "mimeType": "image/png", "buffer": content})


def test_a_photograph_above_the_limit_is_sent_smaller(page, pictures):
    large, file = Image.open(io.BytesIO(pictures[0])).resize((1800, 1800)).convert("RGB"), io.BytesIO()
    large.save(file, "PNG", compress_level=0)
    sent = "async () => { const body = await smallEnough(steps.at(-1).file); return [body.type, body.size] }"
    for content, kind in ((file.getvalue(), "image/jpeg"), (pictures[0], "image/png")):
        assert (len(content) > serve.MAX_BODY) == (kind == "image/jpeg")
        choose(page, content)
        read(page, "0")
        assert page.evaluate(sent)[0] == kind
        assert page.evaluate(sent)[1] <= serve.MAX_BODY
        page.click("#clear")
        read(page, "")


def test_a_large_file_that_is_no_picture_is_not_sent(page):
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    choose(page, bytes(serve.MAX_BODY + 1))
    page.wait_for_function("() => document.querySelector('#error').textContent !== ''")
    assert page.inner_text("#error") == "The picture has more than 8 MiB; choose a smaller one."
    assert not sent


def test_a_busy_server_is_asked_again(page):
    refused = []

    def refuse_once(route):
        if refused:
            return route.continue_()
        refused.append(route.request.post_data_buffer)
        headers = {"Retry-After": "0.1"}
        return route.fulfill(status=503, headers=headers, json={"error": "64 requests are waiting."})

    page.route("**/predict*", refuse_once)
    draw(page, *CIRCLE)
    read(page, "0")
    assert len(refused) == 1
    assert page.inner_text("#error") == ""


class _WordClassifier:
    """A model of the user's own images, with class names that look like HTML."""

    name = "<i>pets & co</i>"
    classes = ("<img src=x onerror=alert(1)>", "a dog" * 40, "{{ 7 * 7 }}")
    shape = (32, 32)
    converted = False
    thresholds = typicality = None

    def probabilities(self, images):
        assert images.shape[1:] == self.shape
        return np.tile(np.array([0.7, 0.2, 0.1], np.float32), (len(images), 1))


def test_class_names_are_escaped(browser):
    server = waitress.create_server(serve.create_app(_WordClassifier()), host="127.0.0.1", port=0)
    threading.Thread(target=server.run, daemon=True).start()
    page = browser.new_page(viewport={"width": 390, "height": 664}, is_mobile=True)
    page.goto(f"http://127.0.0.1:{server.effective_port}")
    draw(page, *CIRCLE)
    read(page, _WordClassifier.classes[0])
    assert_fits(page, 390, 664)
    assert page.locator("#top b").all_inner_texts() == list(_WordClassifier.classes)
    assert _WordClassifier.name in page.inner_text("body")
    assert _WordClassifier.name in page.title()
    page.close()


def invoke(*arguments):
    return CliRunner().invoke(main, ["serve", *map(str, arguments)])


def test_the_command_prints_its_address_and_ends_quietly_on_ctrl_c(trained_run, monkeypatch):
    lines, pages = [], []

    def visit(line):
        try:
            pages.append(urllib.request.urlopen(re.search(r"http://127\.0\.0\.1:\d+", line)[0]).read().decode())
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def say(line):
        lines.append(line)
        threading.Thread(target=visit, args=[line]).start()

    monkeypatch.setattr(serve, "say", say)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
    try:
        result = invoke(trained_run, "--port", 0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 0
    assert result.exception is None
    assert result.output == ""
    assert len(lines) == 1
    assert "Draw a character" in pages[0]


def test_a_port_in_use_is_refused_before_the_model_is_loaded(trained_run, monkeypatch):
    monkeypatch.setattr("emnist_dali.deploy.serve.load_classifier", lambda path: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke(trained_run, "--port", port)
    assert result.exit_code == 1
    reason = os.strerror(errno.EADDRINUSE)
    assert result.output == (
        f"Error: Port {port} of 127.0.0.1 cannot be used ({reason}); choose another --port, or 0 for a free one.\n"
    )


@pytest.mark.parametrize("package", ["flask", "waitress"])
def test_a_missing_package_is_named_with_its_extra(trained_run, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = invoke(trained_run)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {package} could not be imported (")
    assert result.output.endswith("; pip install 'emnist-dali[serve]'.\n")


def test_a_folder_without_a_run_is_refused(tmp_path):
    result = invoke(tmp_path, "--port", 0)
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert str(tmp_path) in result.output


def until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.01)


@pytest.fixture
def worker():
    return Decoder((28, 28), True)


@pytest.fixture
def picture_of_one(pictures):
    return pictures[2]


# Takes Pillow 3 s.
SLOW = b"P5\n1900 1000\n254\n" + bytes(1_900_000)


def test_a_slow_picture_is_abandoned_and_the_next_is_decoded(worker, picture_of_one, monkeypatch):
    before = worker(picture_of_one)
    monkeypatch.setattr(decoder, "TIMEOUT", 0.1)
    with pytest.raises(UserError, match=r"takes more than 0\.1 s to decode"):
        worker(SLOW)
    monkeypatch.undo()
    assert (worker(picture_of_one).image == before.image).all()


def test_a_decoder_that_is_killed_is_replaced(worker, picture_of_one):
    before = worker(picture_of_one)
    worker._process.kill()
    worker._process.join()
    assert (worker(picture_of_one).image == before.image).all()


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="no /proc")
def test_the_memory_of_the_decoder_is_limited(worker, picture_of_one):
    worker(picture_of_one)
    limits = Path(f"/proc/{worker._process.pid}/limits").read_text()
    assert int(re.search(r"Max address space +(\d+)", limits)[1]) < 2**36


def test_the_cheapest_picture_goes_first_and_few_large_ones_may_wait(worker, monkeypatch):
    go, order = threading.Event(), []

    def slowly(self, content, kind, ours):
        order.append(len(content))
        go.wait(SECONDS)
        return bytes(28 * 28)

    monkeypatch.setattr(Decoder, "_decode", slowly)
    monkeypatch.setattr(decoder, "decoding_cost", len)
    monkeypatch.setattr(decoder, "SMALL", 100)
    monkeypatch.setattr(decoder, "MAX_LARGE_WAITING", 2)
    sizes = [200, 500, 400, 600, 50, 300, 60]
    with ThreadPoolExecutor(len(sizes)) as pool:
        answers = []
        for size in sizes:
            answers.append(pool.submit(worker, bytes(size)))
            until(lambda: len(order) + len(worker._waiting) + sum(map(Future.done, answers)) == len(answers))
        go.set()
        refused = [size for size, answer in zip(sizes, answers, strict=True) if answer.exception()]
    assert order == [200, 50, 60, 300, 400]
    assert refused == [500, 600]
    assert all(isinstance(answers[sizes.index(size)].exception(), BusyError) for size in refused)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_a_decoder_ends_when_its_server_is_killed():
    program = (
        "from emnist_dali.deploy.decoder import Decoder\n"
        "one = Decoder((28, 28), True)\nprint(one._process.pid, flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        pid = int(server.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        server.kill()
        until(lambda: not Path(f"/proc/{pid}").exists())
