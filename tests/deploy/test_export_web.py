import base64
import functools
import http.server
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.core.output_folder import LISTING
from emnist_dali.deploy import export as export_module
from emnist_dali.deploy import export_web as export_web_module
from emnist_dali.deploy import onnxruntime_web as onnxruntime_web_module
from emnist_dali.deploy.answers import Question, to_answer
from emnist_dali.deploy.decoder import decode
from emnist_dali.deploy.export_web import export_web, page_typicality
from emnist_dali.deploy.page import FOLDER
from emnist_dali.runs.classifier import load_classifier
from emnist_dali.runs.typicality import UNTYPICAL, WARNING

from ..local_server import local_server
from .test_serve import CIRCLE, ONE, WINDOWS, assert_fits, draw, pixels, read, scan

# Of the model's probabilities, in the browser and here.
TOLERANCE = 1e-4
SEQUENCE = [ONE, CIRCLE, [(0.2, 0.2), (0.8, 0.8)], [(0.3, 0.5)], [(0.8, 0.2), (0.2, 0.8), (0.8, 0.8)]]


@pytest.fixture(scope="module")
def server(site):
    """A static server, as plain as they get."""
    quiet = type("Handler", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with local_server(functools.partial(quiet, directory=site)) as server:
        yield server.url


@pytest.fixture(params=["server", "file"])
def address(request, site):
    return site.as_uri() if request.param == "file" else request.getfixturevalue("server")


@pytest.fixture(params=["phone", "desktop"])
def page(request, browser, address):
    """The exported page, which asks for its own files only."""
    if request.param == "phone":
        page = browser.new_page(viewport={"width": 390, "height": 664}, is_mobile=True, has_touch=True)
    else:
        page = browser.new_page(viewport={"width": 1024, "height": 690})
    messages, requested = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(f"{address}/index.html")
    yield page
    page.close()
    assert messages == []
    own = {f"{address}/{name}" for name in ("index.html", "model.js", "onnxruntime-web/runtime.js")}
    assert {url for url in requested if not url.startswith(("blob:", "data:"))} == own


def predicted(picture, classifier):
    """As the page answers: what `predict` says about the bytes of a picture."""
    glyph = decode(picture, classifier.shape, classifier.converted)
    answer = to_answer(classifier.probabilities(glyph.image[None])[0], classifier, Question(5), glyph.warning)
    return {**answer, "seen": glyph.image}


def assert_same(answer, expected):
    assert [each["character"] for each in answer["top"]] == [each["character"] for each in expected["top"]]
    for these, those in zip(answer["top"], expected["top"], strict=True):
        assert these["probability"] == pytest.approx(those["probability"], abs=TOLERANCE)
    assert (answer["character"], answer["warning"]) == (expected["character"], expected["warning"])
    assert np.array_equal(pixels(answer["seen"])[..., 0], expected["seen"])


def test_after_every_stroke_the_page_answers_as_predict_does(page, site):
    classifier = load_classifier(site / "model.onnx")
    characters = set()
    for points in SEQUENCE:
        draw(page, *points)
        page.wait_for_function("() => !recognizing")
        answer = page.evaluate("async () => await recognize(canvas)")
        url = page.evaluate("() => canvas.toDataURL()")
        assert_same(answer, predicted(base64.b64decode(url.partition(",")[2]), classifier))
        read(page, answer["character"])
        shares = page.locator("#top span").all_inner_texts()
        assert shares == [f"{100 * each['probability']:.1f} %" for each in answer["top"]]
        characters.add(answer["character"])
    assert len(characters) > 1


def test_pictures_are_answered_as_predict_does(page, site, drawn):
    classifier = load_classifier(site / "model.onnx")
    for image in drawn.parts["test"].images[::9]:
        picture = scan(image)
        page.set_input_files("#file", {"name": "scan.png", "mimeType": "image/png", "buffer": picture})
        expected = predicted(picture, classifier)
        read(page, expected["character"])
        page.wait_for_function("() => !recognizing")
        assert_same(page.evaluate("async () => await recognize(steps.at(-1).file)"), expected)


def test_the_page_warns_of_what_looks_like_no_character_as_predict_does(browser, server, site):
    shipped = load_classifier()  # the exported run has too few validation images for a typicality
    rng = np.random.default_rng(0)
    concentrations = rng.uniform(0.005, 0.5, (400, 1)) * np.ones((1, len(shipped.classes)))
    rows = np.stack([rng.dirichlet(each) for each in concentrations]).astype(np.float32)
    rows = np.concatenate([rows, np.exp(shipped.typicality.means[:, :]).astype(np.float32)])
    page = browser.new_page()
    page.goto(f"{server}/index.html")
    warnings = page.evaluate(
        "([rows, typicality]) => rows.map(row => warningOf(row, typicality))",
        [rows.tolist(), page_typicality(shipped)],
    )
    page.close()
    expected = [WARNING if each < UNTYPICAL else None for each in shipped.typicality(rows)]
    assert warnings == expected
    assert {WARNING, None} == set(expected)


def test_the_page_says_that_nothing_is_sent_and_cannot_send(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    assert "Nothing is sent" in page.inner_text("summary")
    page.evaluate("() => { window.refused = []; document.onsecuritypolicyviolation = event => refused.push(event) }")
    image = "Object.assign(new Image(), { onload: done, onerror: fail, src: 'http://127.0.0.1:9/' })"
    ways = (
        "fetch('index.html', { method: 'POST', body: 'x' })",
        "fetch('http://127.0.0.1:9/')",
        f"new Promise((done, fail) => {image})",
    )
    for way in ways:
        assert page.evaluate(f"() => {way}.then(() => 'sent', () => 'not sent')") == "not sent"
    assert page.evaluate("() => refused.length") == len(ways)
    page.close()


@pytest.mark.parametrize(("width", "height"), WINDOWS)
def test_the_page_fits_a_phone(browser, site, width, height):
    page = browser.new_page(viewport={"width": width, "height": height}, is_mobile=True, has_touch=True)
    page.goto(f"{site.as_uri()}/index.html")
    assert_fits(page, width, height)
    draw(page, *CIRCLE)
    read(page, "0")
    assert_fits(page, width, height)
    page.close()


def test_a_folder_without_its_files_says_what_is_missing(browser, site, tmp_path):
    shutil.copytree(site, tmp_path / "site")
    (tmp_path / "site" / "onnxruntime-web" / "runtime.js").unlink()
    page = browser.new_page()
    page.goto(f"{(tmp_path / 'site').as_uri()}/index.html")
    draw(page, *ONE)
    page.wait_for_function("() => document.querySelector('#error').textContent !== ''")
    assert "onnxruntime-web/runtime.js cannot be loaded" in page.inner_text("#error")
    page.close()


def test_the_folder_holds_the_model_as_onnx_with_its_card_and_the_licence(site, trained_run, drawn):
    listed = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert listed == {
        "index.html", "model.onnx", "model.md", "model.js", LISTING,
        "onnxruntime-web/runtime.js", "onnxruntime-web/LICENSE",
    }  # fmt: skip
    exported, trained = load_classifier(site / "model.onnx"), load_classifier(trained_run)
    images = drawn.parts["test"].images
    np.testing.assert_allclose(exported.probabilities(images), trained.probabilities(images), rtol=0, atol=1e-5)
    assert "`model.onnx`" in (site / "model.md").read_text()
    assert (site / "onnxruntime-web" / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) Microsoft")
    model = json.loads((site / "model.js").read_text().partition("const MODEL = ")[2])
    assert tuple(model["classes"]) == exported.classes


def test_scripts_can_stand_in_the_page():
    for path in FOLDER.glob("*.js"):
        assert not re.search(r"</script|<!--", path.read_text("utf-8"), re.IGNORECASE)


def invoke(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments), "--format", "web"])


def test_int8_answers_in_the_browser_as_here(onnxruntime_web, browser, trained_run, tmp_path):
    result = invoke(trained_run, "--int8", "--output", tmp_path / "site")
    assert result.exit_code == 0, result.output
    assert re.match(rf"{tmp_path}/site: \d\.\d\d MB \(index.html .*, model.onnx 0\.", result.output)
    assert re.search(r"\nCalibrated on \d+ training images\.\n", result.output)
    page = browser.new_page()
    page.goto(f"{(tmp_path / 'site').as_uri()}/index.html")
    draw(page, *CIRCLE)
    read(page, "0")
    url = page.evaluate("() => canvas.toDataURL()")
    expected = predicted(base64.b64decode(url.partition(",")[2]), load_classifier(tmp_path / "site" / "model.onnx"))
    page.wait_for_function("() => !recognizing")
    answer = page.evaluate("async () => await recognize(canvas)")
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "vnni" in cpuinfo.read_text():
        assert_same(answer, expected)
    else:  # without VNNI ONNX Runtime has other int8 kernels: 4e-4 apart on Zen 3
        assert answer["character"] == expected["character"]
        assert answer["top"][0]["probability"] == pytest.approx(expected["top"][0]["probability"], abs=2e-3)
    page.close()


def test_a_folder_of_the_users_stays(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_web_module, "TrainedClassifier", lambda run: pytest.fail("work before the check"))
    (tmp_path / "letter.txt").write_text("mine")
    result = invoke(trained_run, "--output", tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path} holds letter.txt, which is not as emnist-dali wrote it" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_where_it_cannot_be(trained_run, tmp_path, monkeypatch):
    result = invoke("builtin")
    assert result.exit_code == 1
    assert "add --output." in result.output
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(onnxruntime_web_module, "URL", "http://127.0.0.1:9/")
    monkeypatch.setattr(onnxruntime_web_module, "RETRY_DELAYS", ())
    result = invoke(trained_run, "--output", tmp_path / "site")
    assert result.exit_code == 1
    assert "could not be downloaded from http://127.0.0.1:9/ (Connection refused)" in result.output
    assert result.output.count("\n") == 1
    own_images = SimpleNamespace(converted=False, shape=(32, 32))
    monkeypatch.setattr(export_web_module, "TrainedClassifier", lambda run: own_images)
    result = invoke(trained_run, "--output", tmp_path / "site")
    assert result.exit_code == 1
    assert "reads other images than EMNIST's" in result.output
    assert not list(tmp_path.iterdir())


def test_a_model_that_answers_differently_is_not_written(onnxruntime_web, trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "TOLERANCE", -1)
    with pytest.raises(UserError, match=r"site/model.onnx was not written"):
        export_web(trained_run, tmp_path / "site")
    assert not list(tmp_path.iterdir())
