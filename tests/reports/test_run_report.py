import base64
import html
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from markupsafe import escape
from PIL import Image
from safetensors.torch import load_file, save_file

from emnist_dali.cli import main
from emnist_dali.core import tensor_files
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, sha256, write_json
from emnist_dali.data.shards import Shards
from emnist_dali.evaluation import inference
from emnist_dali.evaluation.corruptions import CONDITIONS
from emnist_dali.evaluation.metrics import confusions, score
from emnist_dali.reports import run_report
from emnist_dali.reports.run_report import write_report
from emnist_dali.runs import schema
from emnist_dali.runs.checkpoint import load_weights
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.predictions import Predictions

SECTIONS = [
    "Most confident mistakes",
    "Training",
    "Confusion matrix",
    "Most frequent confusions",
    "Accuracy and F1 per class",
    "Calibration",
    "Class distribution",
]
HOSTILE = ["<b>x</b>", "</script><script>document.title='taken'</script>", "&amp;", "'\"", "$x^2$", "<"]


def lines(run):
    return RunFolder(run).entries()


def write_lines(run, records):
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def of_the_test(run):
    return next(line for line in lines(run) if line["kind"] == "test")


def markup(path):
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)


def text(path):
    return html.unescape(re.sub(r"<[^>]*>", " ", markup(path))).replace("\xa0", " ")


def headings(path):
    return re.findall(r"<h2>(.*?)</h2>", markup(path))


def pictures(page):
    """(H, W) uint8 each."""
    coded = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(png)))) for png in coded]


def copy(run, to):
    shutil.copytree(run, to)
    return to


def as_if_tested(run, probabilities, labels, classes):
    """`run` as if its test had given these predictions."""
    predictions = Predictions(probabilities, labels)
    result = {"kind": "test", **score(predictions, classes)}
    write_lines(run, [*(line for line in lines(run) if line["kind"] == "epoch"), result])
    tensors = {"probabilities": probabilities.half(), "predicted": probabilities.argmax(1).byte()}
    save_file({**tensors, "labels": labels.byte()}, run / "predictions-test.safetensors")


def guesses(labels, classes, wrong):
    """Probabilities that are right but for `wrong`, {place: (class, probability)}."""
    probabilities = torch.full((len(labels), classes), 0.2 / (classes - 1))
    probabilities[torch.arange(len(labels)), labels] = 0.8
    for place, (label, probability) in wrong.items():
        probabilities[place] = (1 - probability) / (classes - 1)
        probabilities[place, label] = probability
    return probabilities


@pytest.fixture(scope="module")
def misread(trained_run, folder, tmp_path_factory):
    """A copy of the run that misclassified five images, the most confident last; {place: (class, probability)}."""
    run = copy(trained_run, tmp_path_factory.mktemp("misread") / "run")
    shards = Shards(folder, "test")
    labels = torch.from_numpy(shards.labels()).long()
    of = {label: (labels == label).nonzero().flatten().tolist() for label in (0, 3, 5)}
    places = [*of[0][:3], of[3][0], of[5][0]]
    wrong = dict(zip(places, [(1, 0.5), (1, 0.6), (1, 0.7), (4, 0.8), (6, 0.9)], strict=True))
    as_if_tested(run, guesses(labels, 12, wrong), labels, shards.manifest.classes)
    return run, wrong


@pytest.fixture(scope="module")
def page(misread, tmp_path_factory):
    return write_report([misread[0]], tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def opened(browser):
    """Opens a file on a phone's width without network; what went wrong, and what was asked of the network."""
    pages = []

    def open_file(path, scheme="light", width=390):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        pages.append(page)
        page.wrong, page.asked = [], []
        page.on("console", lambda message: message.type in ("error", "warning") and page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))

        def route(route):
            local = route.request.url.startswith("file:")
            if not local:
                page.asked.append(route.request.url)
            route.continue_() if local else route.abort()

        page.route("**/*", route)
        page.goto(path.resolve().as_uri())
        return page

    yield open_file
    for page in pages:
        page.close()


def test_the_page_has_every_section(page):
    assert headings(page) == SECTIONS


def test_the_name_and_the_accuracy_lead(misread, page):
    told = " ".join(text(page).split())
    name_and_accuracy = f"{misread[0].name}: 95.37 % test accuracy"
    assert told.startswith(f"{name_and_accuracy} {name_and_accuracy} ")


def test_figures_are_those_of_the_metrics(trained_run, tmp_path):
    told = text(write_report([trained_run], tmp_path / "report.html"))
    epochs = [line for line in lines(trained_run) if line["kind"] == "epoch"]
    test = of_the_test(trained_run)
    best = max(epochs, key=lambda line: line["val_accuracy"])
    for expected in (
        f"Test accuracy {100 * test['accuracy']:.2f} %",
        f"Weighted F1 {test['weighted_f1']:.4f}",
        f"Macro F1 {test['macro_f1']:.4f}",
        f"Validation accuracy {100 * best['val_accuracy']:.2f} %",
        f"best, after epoch {best['epochs_done']};",
        f"{len(epochs)} of {len(epochs)} epochs",
        f"{epochs[-1]['step']} steps",
        f"Expected calibration error: {100 * test['calibration_error']:.2f} %",
        "small, drawn glyphs and not EMNIST",
        "600 training images, 5 % of them held out",
        "108 images",
    ):
        assert expected in told, expected


def test_the_interval_is_wilsons(misread, page):
    n, p, z = 108, 103 / 108, 1.959964
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert f"95 % interval {100 * low:.2f} to {100 * high:.2f}" in text(page)


def test_confusions_are_those_of_the_metrics_with_their_images(misread, page, folder):
    run, wrong = misread
    table = markup(page).split("Most frequent confusions")[1].split("</table>")[0]
    rows = [[re.sub("&nbsp;|\xa0", " ", cell) for cell in row.split("<td>")[1:]] for row in table.split("<tr>")[2:]]
    expected = confusions(of_the_test(run))
    assert [row[0] for row in rows] == [f"<code>{true}</code> → <code>{of}</code>" for true, of, *_ in expected]
    assert [row[1:3] for row in rows] == [[f"{count}", f"{100 * share:.2f} %"] for *_, count, share in expected]
    most_confident_first = Shards(folder, "test").images(np.array(list(wrong))[[2, 1, 0]])
    assert np.array_equal(pictures(rows[0][3]), most_confident_first)


def test_the_table_of_the_classes_is_that_of_the_metrics(misread, page):
    test = of_the_test(misread[0])
    table = text(page).split("As a table")[1].split("Calibration")[0].split("F1", 1)[1].split()
    rows = [table[i : i + 6] for i in range(0, len(table), 6)]  # each % is a word
    assert [row[:3] for row in rows] == [
        [name, "9", f"{100 * recall:.2f}"] for name, recall in test["per_class"].items()
    ]


def test_mistakes_are_the_misread_images_the_most_confident_first(misread, page, folder):
    _, wrong = misread
    gallery = markup(page).split("Most confident mistakes")[1].split("<h2>")[0]
    places = np.array(list(wrong))[::-1]
    assert np.array_equal(pictures(gallery), Shards(folder, "test").images(places))
    captions = re.findall(r"<code>(.*?)</code> → <code>(.*?)</code><br><small>(.*?)\xa0%", gallery)
    classes, labels = Shards(folder, "test").manifest.classes, Shards(folder, "test").labels()
    assert [(true, predicted) for true, predicted, _ in captions] == [
        (classes[labels[i]], classes[wrong[i][0]]) for i in places
    ]
    assert [float(percent) for *_, percent in captions] == pytest.approx([90, 80, 70, 60, 50], abs=0.05)


def test_a_trial_shows_the_images_that_it_was_evaluated_on(trained_run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "TRIAL_IMAGES", 31)
    run = copy(trained_run, tmp_path / "run")
    config = read_json(run / "config.json")
    config["training"]["steps"] = 7
    write_json(run / "config.json", config)
    shards = Shards(folder, "test")
    members = np.linspace(0, 107, 31).round().astype(int)
    labels = torch.from_numpy(shards.labels(members)).long()
    as_if_tested(run, guesses(labels, 12, {20: (0, 0.9)}), labels, shards.manifest.classes)
    gallery = markup(write_report([run])).split("Most confident mistakes")[1].split("<h2>")[0]
    assert np.array_equal(pictures(gallery), shards.images(members[[20]]))


def test_a_run_without_mistakes_says_so(trained_run, folder, tmp_path):
    run, shards = copy(trained_run, tmp_path / "run"), Shards(folder, "test")
    labels = torch.from_numpy(shards.labels()).long()
    as_if_tested(run, guesses(labels, 12, {}), labels, shards.manifest.classes)
    page = write_report([run])
    assert "No image was misclassified." in text(page)
    assert pictures(markup(page)) == []


def test_nothing_is_loaded_from_elsewhere(page):
    whole = page.read_text("utf-8")
    loaded = re.findall(r"\b(?:src|href)\s*=\s*[\"']?([^\"'\s>]*)", markup(page))
    assert loaded
    assert all(address.startswith("data:") for address in loaded)
    assert not re.search(r"<(?:script|link|iframe|img)[^>]*\bhttps?:", whole)
    style = "".join(re.findall(r"<style>(.*?)</style>", whole, flags=re.DOTALL))
    assert "@import" not in style
    assert "url(" not in style


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_renders_on_a_phone_without_network_or_error(page, opened, scheme):
    shown = opened(page, scheme)
    shown.wait_for_timeout(300)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    assert shown.locator(".chart > .frame > svg, .chart > .wide svg[role=img]").count() == 10
    sizes = shown.locator(".chart svg[role=img]").evaluate_all(
        "all => all.map(svg => [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height])"
    )
    assert all(width > 200 and height > 100 for width, height in sizes)
    # Text on the page's own ground, light or dark.
    ink = "getComputedStyle(document.querySelector('.x span')).color"
    assert shown.evaluate(ink) == shown.evaluate("getComputedStyle(document.body).color")
    assert (shown.wrong, shown.asked) == ([], [])


def test_another_order_of_the_matrix_keeps_every_count_with_its_classes(misread, page, opened):
    test = of_the_test(misread[0])
    classes = list(test["per_class"])
    shown = opened(page, width=1200)
    form = shown.locator("form.ordered").first
    for order in ("confusion", "accuracy", "class"):
        form.get_by_role("radio", name=order).check()
        cells = form.locator("rect[data-images]").evaluate_all(
            "all => all.map(cell => ['x', 'y', 'data-images'].map(name => Number(cell.getAttribute(name))))"
        )
        x, y = (labels_in_order(form, axis) for axis in "xy")
        assert x == y
        counts = np.zeros((12, 12), int)
        for column, row, images in cells:
            counts[classes.index(y[row]), classes.index(x[column])] += images
        assert counts.tolist() == test["confusion"]
        if order == "confusion":
            assert abs(x.index(classes[0]) - x.index(classes[1])) == 1
        if order == "accuracy":
            assert x[0] == classes[0]
    assert x == classes


def labels_in_order(form, axis):
    """The labels of an axis as they stand on the page."""
    labels = form.locator(f".{axis}.labels span")
    side = {"x": "left", "y": "top"}[axis]
    places = labels.evaluate_all(f"all => all.map(label => label.getBoundingClientRect().{side})")
    return [label for _, label in sorted(zip(places, labels.all_text_contents(), strict=True))]


def point_at(page, mark):
    """Moves the mouse to the middle of `mark`; what the page tells of it, None if nothing."""
    mark.evaluate("mark => mark.scrollIntoView({block: 'center', inline: 'center'})")
    page.wait_for_timeout(100)  # the page hides what it told once it has scrolled
    box = mark.evaluate("mark => mark.getBoundingClientRect().toJSON()")
    page.mouse.move(box["left"] + box["width"] / 2, box["top"] + box["height"] / 2)
    tip = page.locator("#tip")
    return tip.text_content().replace("\xa0", " ") if tip.is_visible() else None


def test_what_is_pointed_at_tells_its_numbers(misread, page, opened):
    test = of_the_test(misread[0])
    shown = opened(page, width=1200)
    assert point_at(shown, shown.locator("h1")) is None
    matrix = shown.locator("form.ordered").first
    for order in ("class", "accuracy"):
        matrix.get_by_role("radio", name=order).check()
        assert point_at(shown, matrix.locator("rect[data-images='3']")) == "true 0, predicted 1\n3 images, 33.33 %"
    bars = shown.locator("form.ordered").nth(1).locator("[data-tip]").first
    recall = f"{100 * test['per_class']['0']:.2f} %"
    assert point_at(shown, bars) == f"0: 9 images\naccuracy (recall): {recall}\nF1: 80.00 %"
    loss = lines(misread[0])[1]["loss"]
    assert point_at(shown, shown.locator(".charts [data-tip]").nth(1)) == f"epoch 2\n{loss:.4f}"
    point = shown.locator(".square .hit").last
    assert point_at(shown, point).splitlines()[0] in ("as it answers", "before calibration")


def test_a_tap_tells_the_numbers_and_the_page_says_so(page, browser):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    shown = context.new_page()
    shown.goto(page.resolve().as_uri())
    sentence = shown.locator("p", has_text="for its numbers")
    assert sentence.inner_text().endswith("Tap a cell for its numbers.")
    shown.locator("rect[data-images='3']").tap()
    assert shown.locator("#tip").inner_text().startswith("true 0, predicted 1")
    box = shown.locator("#tip").bounding_box()
    assert 0 <= box["x"] <= 390 - box["width"]
    shown.locator("h2").last.tap()
    assert shown.locator("#tip").is_hidden()
    context.close()


def test_calibration_is_that_of_the_metrics(trained_run, tmp_path, opened):
    shown = opened(write_report([trained_run], tmp_path / "report.html"))
    points = shown.locator(".square .series").first.locator("[data-tip]")
    tips = points.evaluate_all("all => all.map(point => point.dataset.tip)")
    told = [re.findall(r"\d[\d.,]*", tip.replace(", accuracy", "")) for tip in tips]
    x, y, n = np.array([[float(number.replace(",", "")) for number in numbers[-3:]] for numbers in told]).T
    error = (n * np.abs(x - y)).sum() / n.sum() / 100
    # The kept probabilities are of half precision.
    assert error == pytest.approx(of_the_test(trained_run)["calibration_error"], abs=1e-3)


def test_runs_side_by_side(misread, trained_run, tmp_path, opened):
    other = copy(misread[0], tmp_path / "other <run>")
    config = read_json(other / "config.json")
    config["training"]["lr"] = 0.123
    write_json(other / "config.json", config)
    epochs = [line for line in lines(other) if line["kind"] == "epoch"]
    write_lines(other, [*({**line, "val_accuracy": 0.4321} for line in epochs[:3]), of_the_test(other)])
    page = write_report([trained_run, other], tmp_path / "report.html")
    assert headings(page)[:4] == ["Differences in test accuracy", "Settings that differ", "Training", "run"]
    assert "McNemar's exact test on 108 images" in text(page)
    told = " ".join(text(page).split())
    first = max(line["val_accuracy"] for line in lines(trained_run) if line["kind"] == "epoch")
    assert re.search(rf"Validation accuracy {100 * first:.2f} %.*? 43.21 %", told)
    assert f"training.lr {read_json(trained_run / 'config.json')['training']['lr']} 0.123" in told
    assert "training.batch_size" not in told.split("Settings that differ")[1].split("Training")[0]
    shown = opened(page)
    chart = shown.locator(".charts .chart").nth(1)
    assert chart.locator(".legend span").all_text_contents() == ["run", "other <run>"]
    tips = chart.locator("[data-tip]").evaluate_all("all => all.map(strip => strip.dataset.tip)")
    assert [tip.replace("\xa0", " ").splitlines()[2:] for tip in tips] == [["other <run>: 43.21 %"]] * 3 + [[]] * 5
    folded = shown.locator("body > details").last
    folded.locator("> summary").click()
    assert folded.locator(".chart svg[role=img]").count() == 4
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    assert (shown.wrong, shown.asked) == ([], [])


def test_a_group_is_its_runs_with_their_mean(trained_group, tmp_path):
    group = copy(trained_group, tmp_path / "group")
    page = write_report([group])
    assert page == group / "report.html"
    assert headings(page)[:2] == ["Mean ± standard deviation", "Each run"]
    tests = [entry for name in ("seed-0", "seed-1") for entry in lines(group / name) if entry["kind"] == "test"]
    accuracies, f1 = ([entry[name] for entry in tests] for name in ("accuracy", "macro_f1"))
    told = " ".join(text(page).split())
    mean = f"{100 * np.mean(accuracies):.2f} ± {100 * np.std(accuracies, ddof=1):.2f} %"
    assert f"seed-0, seed-1 {mean}" in told
    assert f"{np.mean(f1):.4f} ± {np.std(f1, ddof=1):.4f}" in told
    assert "Differences" not in told
    (tmp_path / "link").symlink_to(group / "seed-0")
    with_itself = text(write_report([group, group / "seed-0", tmp_path / "link"], tmp_path / "both.html"))
    assert "Welch" not in with_itself  # with what would it be compared
    assert f"seed-0, seed-1 {mean}" in " ".join(with_itself.split())  # each run counts once
    assert headings(write_report([group / "seed-0", tmp_path / "link"]))[0] == SECTIONS[0]


def test_runs_that_cannot_be_compared_are_shown_with_the_reason(trained_group, tmp_path):
    untested = copy(trained_group / "seed-0", tmp_path / "untested")
    (untested / "predictions-test.safetensors").unlink()
    told = text(write_report([trained_group / "seed-1", untested], tmp_path / "report.html"))
    assert (
        f"Not compared: {untested}/predictions-test.safetensors is missing; name a run that has been tested." in told
    )


def test_runs_of_the_same_name_are_told_apart_by_their_paths(trained_run, misread, tmp_path):
    told = markup(write_report([trained_run, misread[0]], tmp_path / "report.html"))
    assert f"<th>{trained_run}<th>{misread[0]}" in told


@pytest.mark.parametrize(("epochs", "under_way"), [(8, False), (3, True)])
def test_a_run_without_a_test_has_the_validation_only(epochs, under_way, trained_run, tmp_path):
    run = copy(trained_run, tmp_path / "run")
    write_lines(run, [line for line in lines(run) if line["kind"] == "epoch"][:epochs])
    page = write_report([run])
    assert page == run / "report.html"
    assert headings(page) == ["Training", "Class distribution"]
    assert "It has not been tested: the figures are those of the validation images." in text(page)
    assert ("The run has not finished." in text(page)) == under_way
    assert "Validation accuracy" in text(page)
    assert "Test accuracy" not in text(page)


def test_a_run_without_validation_has_no_figures_of_it(trained_run, tmp_path):
    run = copy(trained_run, tmp_path / "run")
    kept = [{name: value for name, value in line.items() if not name.startswith("val_")} for line in lines(run)]
    write_lines(run, kept)
    page = write_report([run])
    assert "Validation" not in text(page)
    assert page.read_text("utf-8").count("<svg viewBox") == 8


def test_without_the_data_the_images_are_left_out_with_a_sentence(misread, tmp_path):
    run = copy(misread[0], tmp_path / "run")
    config = read_json(run / "config.json")
    config["data"]["data_dir"] = str(tmp_path / "gone")
    write_json(run / "config.json", config)
    page = write_report([run])
    assert f"Images are not shown: {tmp_path / 'gone/demo/small'} holds no prepared data" in text(page)
    assert "Training images are not shown: " in text(page)
    assert pictures(markup(page)) == []
    assert headings(page) == [name for name in SECTIONS if name != "Most confident mistakes"]


def test_images_of_other_data_are_not_shown(misread, tmp_path):
    run = copy(misread[0], tmp_path / "run")
    kept = load_file(run / "predictions-test.safetensors")
    save_file(
        {name: tensor.flip(0).contiguous() for name, tensor in kept.items()}, run / "predictions-test.safetensors"
    )
    page = write_report([run])
    assert "holds other test images than the run was tested on" in text(page)
    assert pictures(markup(page)) == []


def test_a_run_from_the_hub_has_no_machine(misread, tmp_path):
    run = copy(misread[0], tmp_path / "run")
    for name in ("env.json", "predictions-test.safetensors"):
        (run / name).unlink()
    assert "epochs on a machine that is not known." in text(write_report([run]))
    assert "a machine that is not known" in text(write_report([run, misread[0]], tmp_path / "both.html"))


def test_names_of_classes_are_text_everywhere(trained_run, tmp_path, opened):
    run = copy(trained_run, tmp_path / "<i>run")
    best = run / "checkpoints/best.safetensors"
    weights, about = load_weights(best)
    classes = [*HOSTILE, *(f"a long name of a class, {i}" for i in range(6))]
    save_file(weights, best, metadata={"about": json.dumps({**about, "classes": classes})})
    labels = torch.arange(12).repeat(3)
    as_if_tested(run, guesses(labels, 12, {i: (i + 1, 0.9) for i in range(11)}), labels, classes)
    page = write_report([run])
    for name in HOSTILE:
        assert f"<code>{escape(name)}</code>" in markup(page)
    shown = opened(page, width=1200)
    assert shown.title() != "taken"
    assert shown.locator("h1, p").get_by_text("<i>run").count() == 1
    assert shown.locator("form.ordered .matrix .y span").all_text_contents() == classes
    hidden = "all => all.map(label => label.scrollWidth > label.clientWidth)"  # the end of a long name
    assert shown.locator(".matrix .y span").evaluate_all(hidden)[-6:] == [True] * 6
    assert shown.evaluate("document.documentElement.scrollWidth") <= 1200
    assert shown.wrong == []


def test_the_command_writes_the_page_and_prints_where(misread, tmp_path):
    run, out = copy(misread[0], tmp_path / "run"), tmp_path / "elsewhere.html"
    for arguments, written in (([str(run)], run / "report.html"), ([str(run), "--out", str(out)], out)):
        result = CliRunner().invoke(main, ["report", *arguments])
        assert (result.exit_code, result.output) == (0, f"{written}\n")
        assert headings(written) == SECTIONS


def no_run(run):
    (run / "config.json").unlink()
    return "holds no run"


def no_epoch(run):
    (run / "metrics.jsonl").unlink()
    return "has no epoch yet"


def half_a_line(run):
    (run / "metrics.jsonl").write_text('{"kind": "epo\n')
    return "metrics.jsonl could not be read"


def no_weights(run):
    (run / "checkpoints/best.safetensors").unlink()
    return "best.safetensors is missing"


def no_predictions(run):
    (run / "predictions-test.safetensors").write_bytes(b"nothing")
    return "does not hold predictions"


@pytest.mark.parametrize("harm", [no_run, no_epoch, half_a_line, no_weights, no_predictions])
def test_what_a_user_can_cause_is_one_sentence(harm, trained_run, tmp_path):
    run = copy(trained_run, tmp_path / "run")
    message = harm(run)
    result = CliRunner().invoke(main, ["report", str(run)])
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not (run / "report.html").exists()


def test_an_output_that_cannot_be_written_is_one_sentence(trained_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be created"):
        write_report([trained_run], tmp_path / "file/report.html")


def test_a_page_is_replaced_and_another_file_is_not(trained_run, tmp_path, monkeypatch):
    run = copy(trained_run, tmp_path / "run")
    page = write_report([run])
    before = page.stat().st_ino
    assert write_report([run]).stat().st_ino != before
    page.write_text("my own")
    monkeypatch.setattr(run_report, "read_run_data", None)  # no work is done for it
    for out, path in ((None, page), (tmp_path / "run" / "config.json", run / "config.json")):
        kept = path.read_bytes()
        with pytest.raises(UserError, match="was not written by emnist-dali"):
            write_report([run], out)
        assert path.read_bytes() == kept


def test_half_a_last_line_is_left_out_with_a_notice(trained_run, tmp_path, capsys):
    run = copy(trained_run, tmp_path / "run")
    path, entries = run / "metrics.jsonl", lines(run)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in (last + 1, (last + len(whole)) // 2, len(whole) - 2):
        path.write_bytes(whole[:end])
        assert lines(run) == entries[:-1]
        assert capsys.readouterr().out == f"{path} ends in an incomplete line, which is ignored.\n"
    for end in (last, len(whole) - 1):  # between lines, and where only the line break is missing
        path.write_bytes(whole[:end])
        assert lines(run) == entries[: None if end > last else -1]
    assert capsys.readouterr().out == ""


def changed(**fields):
    def change(entries):
        entries[1] |= fields

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed(kind="epo"), "its kind"),
        (changed(loss=float("1e300")), "its loss"),
        (changed(loss=True), "its loss"),
        (changed(epochs_done=1), "its epoch does not follow"),
        (changed(epochs_done=0), "its epochs_done"),
        (changed(val_accuracy=1.1), "its val_accuracy"),
        (changed(newer="\x1b[2J"), "its newer"),
        (lambda entries: entries[1].pop("seconds"), "it has no seconds"),
        (lambda entries: entries[1].pop("val_macro_f1"), "it has no val_macro_f1"),
    ],
)
def test_a_wrong_entry_is_refused_by_its_field(change, named, trained_run, tmp_path):
    """Under a right checksum."""
    run, entries = copy(trained_run, tmp_path / "run"), lines(trained_run)
    change(entries)
    (run / "metrics.jsonl").write_text("".join(map(schema.to_line, entries)))
    with pytest.raises(UserError, match=rf"metrics\.jsonl could not be read \(entry 2: {named}"):
        lines(run)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[1]], "matrix does not match"),
        ([[1] * 12] * 12, "matrix does not match"),
        ([[-1] * 12] * 12, "is invalid"),
        ([[1.0] * 12] * 12, "is invalid"),
    ],
)
def test_a_confusion_matrix_is_that_of_the_images(cells, message, trained_run, tmp_path):
    run, entries = copy(trained_run, tmp_path / "run"), lines(trained_run)
    entries[-1]["confusion"] = cells
    write_lines(run, entries)
    with pytest.raises(UserError, match=f"its confusion {message}"):
        lines(run)


def test_entries_of_older_and_newer_versions_are_read(trained_run, tmp_path):
    run, entries = copy(trained_run, tmp_path / "run"), lines(trained_run)
    write_lines(run, entries)  # without checksums
    assert lines(run) == entries
    more = [entry | {"more": {"a": [1, None, "é"]}} for entry in entries]
    (run / "metrics.jsonl").write_text("".join(map(schema.to_line, more)))
    assert lines(run) == more


def test_metrics_that_are_no_file_or_too_long_are_refused_at_once(trained_run, tmp_path, monkeypatch):
    run = copy(trained_run, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MAX_JSON", 100)
        with pytest.raises(UserError, match="more than 100 bytes"):
            lines(run)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(UserError, match="it is not a regular file"):
        lines(run)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"probabilities": torch.full((108, 12), 2.0)}, "between 0 and 1"),
        ({"probabilities": torch.full((108, 12), torch.nan)}, "between 0 and 1"),
        ({"predicted": torch.full((108,), 12).byte()}, "predicted"),
        ({"labels": torch.zeros(107).byte()}, "labels"),
        ({"labels": torch.zeros(108)}, "labels"),
        ({"more": torch.zeros(1)}, "other names"),
    ],
)
def test_wrong_predictions_are_refused(change, named, trained_run, tmp_path):
    run = copy(trained_run, tmp_path / "run")
    path = run / "predictions-test.safetensors"
    save_file({**load_file(path), **change}, path)
    with pytest.raises(UserError, match=f"does not hold predictions .*{named}"):
        write_report([run])


def test_predictions_of_other_images_than_the_test_are_refused(trained_run, tmp_path):
    run = copy(trained_run, tmp_path / "run")
    path = run / "predictions-test.safetensors"
    tensors, metadata = tensor_files.decode(path, "predictions")
    path.write_bytes(tensor_files.encode({name: tensor[:50] for name, tensor in tensors.items()}, metadata))
    with pytest.raises(UserError, match="other images or classes"):
        write_report([run])


@pytest.mark.parametrize(
    "change", [{"gpu": 1}, {"cpus": -1}, {"packages": {"torch": 2}}, {"resumed": [{}]}, {"more": "a\nb"}]
)
def test_a_wrong_environment_is_refused_by_its_field(change, trained_run, tmp_path):
    run = copy(trained_run, tmp_path / "run")
    write_json(run / "env.json", {**read_json(run / "env.json"), **change})
    with pytest.raises(UserError, match=rf"env\.json .*its {next(iter(change))} is invalid"):
        write_report([run])


def robust(run, **fields):
    """Writes a table of `run`'s robustness, of which `fields` are other than usual."""
    cells = {"accuracy": [0.81, 0.5, 0.0], "interval": [[0.8, 0.82], [0.49, 0.51], [0.0, 0.01]]}
    table = {
        "weights": sha256(run / "checkpoints/best.safetensors"),
        "data": "small <drawn>",
        "images": 1080,
        "accuracy": 0.9,
        "interval": [0.89, 0.91],
        "conditions": {name: {"unit": "pixels", "amounts": [1, 2.5, 4], **cells} for name in CONDITIONS},
        "mean_accuracy": 0.4367,
        "mean_relative_accuracy": 0.4852,
    }
    write_json(run / "robustness.json", table | fields)


def robustness_rows(path):
    """Name, cells and opacities of each row of the section's table."""
    table = markup(path).split("<h2>Robustness</h2>")[1].split("</table>")[0]
    cells = [row.split("<td") for row in table.split("<tr>")[2:]]
    texts = [[html.unescape(re.sub(r"^[^>]*>|<[^>]*>", " ", cell)).split() for cell in row[1:]] for row in cells]
    return texts, [[float(x) for x in re.findall(r"rgba\(249,115,22,([\d.]+)\)", "".join(row))] for row in cells]


def test_a_table_of_robustness_is_a_section(misread, tmp_path, opened):
    run = copy(misread[0], tmp_path / "run")
    robust(run)
    page = write_report([run])
    assert headings(page) == [*SECTIONS[:-1], "Robustness", SECTIONS[-1]]
    assert "1,080 corrupted test images (small <drawn>)" in text(page)
    assert "43.67 %, or 48.52 % of the uncorrupted accuracy." in text(page)
    texts, opacities = robustness_rows(page)
    assert texts[0][:2] == [["uncorrupted"], ["90.00", "%", "89.00–91.00"]]
    assert [" ".join(row[0]) for row in texts[1:-1]] == [f"{name} pixels: 1, 2.5, 4" for name in CONDITIONS]
    for row in texts[1:-1]:
        assert row[1:] == [
            ["81.00", "%", "80.00–82.00"],
            ["50.00", "%", "49.00–51.00"],
            ["0.00", "%", "0.00–1.00"],
        ]
    assert texts[-1] == [["mean"], ["81.00", "%"], ["50.00", "%"], ["0.00", "%"]]
    assert opacities[0] == [0]
    assert 0 < opacities[1][0] < opacities[1][1] < opacities[1][2] <= 0.8
    shown = opened(page)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    assert (shown.wrong, shown.asked) == ([], [])


def test_a_model_that_is_never_right_has_a_table_of_robustness_without_colours(trained_run, tmp_path):
    run = copy(trained_run, tmp_path / "run")
    robust(run, accuracy=0, interval=[0, 0.01], mean_relative_accuracy=None)
    page = write_report([run])
    assert {opacity for row in robustness_rows(page)[1] for opacity in row} == {0}
    assert "of the uncorrupted accuracy" not in text(page)


def test_each_of_several_runs_has_its_table_of_robustness(trained_run, misread, tmp_path):
    run = copy(misread[0], tmp_path / "other")
    robust(run)
    assert headings(write_report([trained_run, run], tmp_path / "report.html")).count("Robustness") == 1


def test_a_table_of_other_weights_is_left_out_with_a_notice(trained_run, tmp_path, capsys):
    run = copy(trained_run, tmp_path / "run")
    robust(run, weights="0" * 64)
    assert "Robustness" not in headings(write_report([run]))
    said = capsys.readouterr().out
    assert said.startswith(f"{run / 'robustness.json'} is of other weights and left out")
    assert said.count("\n") == 1


CONDITION = {"unit": "", "amounts": [1, 2, 3], "accuracy": [0.5] * 3, "interval": [[0, 1]] * 3}


@pytest.mark.parametrize(
    "change",
    [
        {"weights": 1},
        {"data": "a\nb"},
        {"images": 0},
        {"accuracy": 1.5},
        {"interval": [0.1]},
        {"mean_accuracy": None},
        {"mean_relative_accuracy": -1},
        {"conditions": {}},
        {"conditions": []},
        {"conditions": {"blur": [0.5]}},
        {"conditions": {"blur\x1b": CONDITION}},
        {"conditions": {f"{i}": CONDITION for i in range(101)}},
        *(
            {"conditions": {"blur": CONDITION | field}}
            for field in (
                {"accuracy": [0.5, 0.5]},
                {"accuracy": 0.5},
                {"amounts": [1, 2, 1e300]},
                {"interval": [[0, 1], [0, 1], [0]]},
                {"unit": None},
            )
        ),
    ],
)
def test_a_wrong_table_of_robustness_is_refused_by_its_field(change, trained_run, tmp_path):
    """Under a right checksum."""
    run = copy(trained_run, tmp_path / "run")
    robust(run, **change)
    with pytest.raises(UserError, match=rf"robustness\.json does not hold .*its {next(iter(change))} is invalid"):
        write_report([run])


def test_a_damaged_table_of_robustness_is_refused(trained_run, tmp_path):
    run = copy(trained_run, tmp_path / "run")
    robust(run)
    path = run / "robustness.json"
    path.write_text(path.read_text().replace("0.9", "0.8", 1))
    with pytest.raises(UserError, match="its sha256 does not match"):
        write_report([run])
    write_json(path, [1])
    with pytest.raises(UserError, match="it is not an object"):
        write_report([run])
