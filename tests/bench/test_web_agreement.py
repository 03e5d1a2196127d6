import numpy as np

import web_agreement
from emnist_dali.deploy.emnist_style import Glyph
from emnist_dali.runs.classifier import load_classifier


def test_python_and_the_browser_agree_on_every_kind_of_picture(browser, drawn):
    page, images = web_agreement.open_page(browser), drawn.parts["test"].images[:1]
    results = web_agreement.measure(page, images, load_classifier("builtin"), np.random.default_rng(0))
    page.close()
    assert list(results) == list(web_agreement.KINDS)
    for row in results.values():
        assert (row["pictures"], row["same_class"]) == (1, 1)
        assert row["greatest_difference"] <= 1
    assert len(web_agreement.table(results).splitlines()) == 2 + len(results)


def test_what_differs_is_counted(drawn, monkeypatch):
    """Of five: equal, other pixels, blank and so another class, another warning, nothing found."""
    answers = iter(("equal", "pixels", "blank", "warning", "nothing"))

    def find_glyph_in(page, picture):
        glyph, answer = web_agreement.find_glyph(picture), next(answers)
        image = glyph.image.copy()
        if answer == "pixels":
            image[0, 0] += 3
        if answer == "blank":
            image[:] = 0
        found = Glyph(image, "something else" if answer == "warning" else glyph.warning)
        return None if answer == "nothing" else found, 1.0

    monkeypatch.setattr(web_agreement, "KINDS", ("drawing",))
    monkeypatch.setattr(web_agreement, "find_glyph_in", find_glyph_in)
    images = drawn.parts["test"].images[:5]
    row = web_agreement.measure(None, images, load_classifier("builtin"), np.random.default_rng(0))["drawing"]
    assert row["equal_images"] == 1 / 5
    assert row["same_class"] == 2 / 5
    assert row["greatest_difference"] == 255
