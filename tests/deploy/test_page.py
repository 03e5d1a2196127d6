"""What the page does, whoever answers it: a server, or the model in the browser."""

import base64
import io
import threading

import numpy as np
import pytest
import waitress
from PIL import Image

from emnist_dali.deploy import serve
from emnist_dali.runs.classifier import load_classifier

from .test_serve import CIRCLE, ONE, WINDOWS, assert_fits, draw, read, scan, state


@pytest.fixture(scope="module")
def server(trained_run):
    server = waitress.create_server(serve.create_app(load_classifier(trained_run)), host="127.0.0.1", port=0)
    threading.Thread(target=server.run, daemon=True).start()
    return f"http://127.0.0.1:{server.effective_port}"


@pytest.fixture(params=["server", "site"])
def address(request):
    """Of the page that `serve` shows, and of the exported one."""
    value = request.getfixturevalue(request.param)
    return value if request.param == "server" else (value / "index.html").as_uri()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 800}, has_touch=True)
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(address)
    yield page
    page.close()
    assert [message for message in messages if "status of 400" not in message] == []  # which the browser logs


@pytest.fixture(scope="module")
def pictures(drawn):
    """A scan of each class, in the order of CLASSES."""
    test = drawn.parts["test"]
    return [scan(test.images[np.flatnonzero(test.labels == label)[0]]) for label in range(12)]


def choose(page, content, name="scan.png"):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def shown(page):
    """(560, 560, 3) uint8: what the canvas shows."""
    url = page.evaluate("() => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def settled(page):
    """`state`, once all of the drawing is answered."""
    page.wait_for_function("() => !recognizing")
    return state(page)


def same(one, other):
    """Whether `state` is the same, but for the bars, which are styled alike in more than one way."""
    return one[:3] == other[:3] and one[4] == other[4]


def test_undo_takes_back_strokes_one_by_one(page):
    empty = settled(page)
    assert page.is_disabled("#undo")
    draw(page, *ONE)
    read(page, "1")
    one = settled(page)
    draw(page, (0.1, 0.1), (0.9, 0.9), (0.1, 0.9), (0.9, 0.1))
    assert not same(settled(page), one)
    page.click("#undo")
    assert same(settled(page), one)
    page.keyboard.press("Control+z")
    read(page, "")
    assert same(settled(page), empty)
    assert page.is_disabled("#undo")
    page.keyboard.press("Control+z")
    assert same(settled(page), empty)


def test_a_picture_is_shown_and_read_and_drawing_leaves_it(page, pictures):
    draw(page, *ONE)
    read(page, "1")
    choose(page, pictures[0])
    read(page, "0")
    picture = np.asarray(Image.open(io.BytesIO(pictures[0])).convert("RGB").resize((560, 560)), int)
    assert np.abs(shown(page) - picture).mean() < 4
    draw(page, *ONE)
    read(page, "1")
    assert set(shown(page)[0, 0]) == {255}
    assert page.is_visible("#seen")
    page.click("#undo")
    read(page, "0")
    assert np.abs(shown(page) - picture).mean() < 4
    page.click("#undo")
    read(page, "1")


@pytest.mark.parametrize("after", ["drawing", "picture"])
def test_clear_is_taken_back(page, pictures, after):
    if after == "picture":
        choose(page, pictures[0])
    else:
        draw(page, *CIRCLE)
    read(page, "0")
    before = settled(page)
    page.click("#clear")
    read(page, "")
    assert set(shown(page).flat) == {255}
    page.click("#undo")
    read(page, "0")
    assert same(settled(page), before)


def test_the_same_file_is_read_again_after_clear(page, pictures):
    for _ in range(2):
        choose(page, pictures[0])
        read(page, "0")
        page.click("#clear")
        read(page, "")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page, pictures, way):
    page.evaluate(
        """([way, content]) => {
            const transfer = new DataTransfer()
            transfer.items.add(new File([new Uint8Array(content)], "scan.png", { type: "image/png" }))
            const init = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer }
            const event = way === "drop" ? new DragEvent(way, init) : new ClipboardEvent(way, init)
            document.querySelector("canvas").dispatchEvent(event)
        }""",
        [way, [*pictures[0]]],
    )
    read(page, "0")


def test_the_button_opens_the_choice_of_a_picture(page, pictures):
    with page.expect_file_chooser() as chooser:
        page.click("#choose")
    chooser.value.set_files({"name": "scan.png", "mimeType": "image/png", "buffer": pictures[0]})
    read(page, "0")
    assert page.get_attribute("#file", "accept") == "image/*"
    assert page.get_attribute("#file", "capture") is None  # phones then offer their pictures, too


def test_a_photograph_is_turned_as_its_exif_says(page, pictures):
    seven, file, exif = pictures[7], io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned = Image.open(io.BytesIO(seven)).transpose(Image.Transpose.ROTATE_90)
    turned.save(file, "JPEG", exif=exif, quality=95)
    choose(page, seven)
    read(page, "7")
    page.click("#clear")
    read(page, "")
    choose(page, file.getvalue(), "photo.jpg")
    read(page, "7")


def test_a_file_that_is_no_picture_gets_a_sentence(page, pictures):
    choose(page, b"a letter", "letter.png")
    page.wait_for_function("() => document.querySelector('#error').textContent !== ''")
    assert page.inner_text("#hint") == "letter.png"
    assert page.inner_text("#error").endswith(".")
    choose(page, pictures[0])
    read(page, "0")
    assert page.inner_text("#error") == ""


def test_two_characters_get_the_warning_beside_the_answer(page, pictures):
    both = Image.new("L", (240, 112), 255)
    for place, picture in ((0, pictures[0]), (128, pictures[1])):
        both.paste(Image.open(io.BytesIO(picture)), (place, 0))
    file = io.BytesIO()
    both.save(file, "PNG")
    choose(page, file.getvalue())
    page.wait_for_function("() => document.querySelector('#warning').textContent !== ''")
    assert page.inner_text("#warning") == "Perhaps not: it shows several characters."
    assert page.inner_text("#answer") != ""
    assert page.inner_text("#error") == ""
    page.click("#clear")
    read(page, "")
    assert not page.is_visible("#warning")


@pytest.mark.parametrize(("width", "height"), WINDOWS)
def test_the_page_fits_a_phone_with_a_photograph(browser, address, pictures, width, height):
    page = browser.new_page(viewport={"width": width, "height": height}, is_mobile=True, has_touch=True)
    page.goto(address)
    choose(page, pictures[0])
    read(page, "0")
    assert_fits(page, width, height)
    heights = page.evaluate("() => ['h1', 'header'].map(name => document.querySelector(name).offsetHeight)")
    assert heights[0] <= heights[1]
    page.close()
