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

import numpy as np
import pytest
import waitress
from click.testing import CliRunner
from PIL import Image

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.deploy import decoder, serve
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
        answer = client.post("/predict", data=picture, content_type="image/png").json
        image = decode(picture, classifier.shape, classifier.converted)
        probabilities = classifier.probabilities(image[None])[0]
        order = np.argsort(-probabilities)[:5]
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


@pytest.mark.parametrize(("asked", "given"), [("1", 1), ("3", 3), ("12", 12), ("1000", 12)])
def test_top_sets_the_number_of_answers(client, pictures, asked, given):
    top = client.post(f"/predict?top={asked}", data=pictures[0]).json["top"]
    assert len(top) == given
    assert sorted(top, key=lambda each: -each["probability"]) == top


def test_concurrent_requests_get_their_own_answers(client, pictures):
    def ask(picture):
        return client.application.test_client().post("/predict", data=picture).json

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
    "a form without the file": {"data": {"picture": (io.BytesIO(b"x"), "a.png")}},
    "no number": {"query_string": {"top": "many"}},
    "no answers": {"query_string": {"top": "0"}},
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
    assert messages == []


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


def test_the_page_fits_a_phone(page):
    draw(page, *CIRCLE)
    read(page, "0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("canvas").bounding_box()["width"] > 300


class _WordClassifier:
    """A model of the user's own images, with class names that look like HTML."""

    name = "<i>pets & co</i>"
    classes = ("<img src=x onerror=alert(1)>", "a dog" * 40, "{{ 7 * 7 }}")
    shape = (32, 32)
    converted = False

    def probabilities(self, images):
        assert images.shape == (1, 32, 32)
        return np.array([[0.7, 0.2, 0.1]], np.float32)


def test_class_names_are_escaped(browser):
    server = waitress.create_server(serve.create_app(_WordClassifier()), host="127.0.0.1", port=0)
    threading.Thread(target=server.run, daemon=True).start()
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(f"http://127.0.0.1:{server.effective_port}")
    draw(page, *CIRCLE)
    read(page, _WordClassifier.classes[0])
    assert page.locator("#top b").all_inner_texts() == list(_WordClassifier.classes)
    assert _WordClassifier.name in page.inner_text("body")
    assert _WordClassifier.name in page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
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
    assert (worker(picture_of_one) == before).all()


def test_a_decoder_that_is_killed_is_replaced(worker, picture_of_one):
    before = worker(picture_of_one)
    worker._process.kill()
    worker._process.join()
    assert (worker(picture_of_one) == before).all()


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="no /proc")
def test_the_memory_of_the_decoder_is_limited(worker, picture_of_one):
    worker(picture_of_one)
    limits = Path(f"/proc/{worker._process.pid}/limits").read_text()
    assert int(re.search(r"Max address space +(\d+)", limits)[1]) < 2**36


def test_the_cheapest_picture_goes_first_and_few_large_ones_may_wait(worker, monkeypatch):
    go, order = threading.Event(), []

    def slowly(self, content, ours):
        order.append(len(content))
        go.wait(SECONDS)
        return len(content)

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
