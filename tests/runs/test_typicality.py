"""A score that tells images like the model's own from others."""

import json

import numpy as np
import pytest

from emnist_dali.runs.typicality import MIN_IMAGES, UNTYPICAL, Typicality, fit_typicality, is_typicality

CLASSES = 6


def answers(n, seed=0, classes=CLASSES):
    """Probabilities of a net that confuses each class with its neighbour, sometimes."""
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=n)
    logits = rng.normal(0, 0.4, (n, classes))
    logits[np.arange(n), true] += 6
    logits[np.arange(n), (true + 1) % classes] += rng.uniform(1, 5, n)
    return softmax(logits)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def typicality():
    return fit_typicality(answers(2_000))


def test_other_images_like_them_are_as_typical(typicality):
    values = typicality(answers(5_000, seed=1))
    assert values.min() >= 0
    assert values.max() <= 1
    for share in (UNTYPICAL, 0.1, 0.5, 0.9):
        assert (values < share).mean() == pytest.approx(share, abs=0.3 * share**0.5 * (1 - share) ** 0.5)


def test_unusual_confusions_are_untypical_however_sure_the_answer(typicality):
    usual = answers(1_000, seed=2)
    # The second likeliest is one that is never confused with the answer.
    logits = np.log(usual)
    best = logits.argmax(1)
    rows = np.arange(len(logits))
    logits[rows, (best + 3) % CLASSES] = logits[rows, best] - 1
    unusual = softmax(logits)
    assert (typicality(unusual) < UNTYPICAL).mean() > 0.95
    assert np.median(unusual.max(1)) > 0.5


def test_its_json_gives_the_same(typicality):
    content = json.loads(json.dumps(typicality.to_json()))
    assert is_typicality(content, CLASSES)
    some = answers(500, seed=3)
    np.testing.assert_allclose(Typicality.from_json(content)(some), typicality(some), atol=0.01)


def test_the_json_of_62_classes_is_small():
    assert len(json.dumps(fit_typicality(answers(700, classes=62)).to_json())) < 70_000


def test_a_class_without_images_does_not_matter_to_the_others():
    some = answers(2_000)
    without = fit_typicality(some[some.argmax(1) != 2])
    others = answers(2_000, seed=4)
    values = without(others)
    assert np.isfinite(values).all()
    assert (values[others.argmax(1) != 2] < UNTYPICAL).mean() < 0.03


def test_sure_probabilities_of_0_and_1_can_be_fitted():
    sure = np.eye(CLASSES)[np.arange(600) % CLASSES]
    typicality = fit_typicality(sure)
    assert typicality(np.full((1, CLASSES), 1 / CLASSES))[0] < UNTYPICAL
    assert (typicality(sure) >= UNTYPICAL).all()


def test_too_few_images_give_none():
    assert fit_typicality(answers(MIN_IMAGES * CLASSES - 1)) is None
    assert fit_typicality(answers(MIN_IMAGES * CLASSES)) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("means"),
        lambda c: c.update(more=1),
        lambda c: c["means"].pop(),
        lambda c: c["whitening"][0].append(1.0),
        lambda c: c["whitening"][0].__setitem__(0, float("nan")),
        lambda c: c["means"][0].__setitem__(0, True),
        lambda c: c["means"][0].__setitem__(0, 1e200),
        lambda c: c["quantiles"].reverse(),
        lambda c: c["quantiles"].__setitem__(-1, "5"),
    ],
)
def test_anything_else_is_no_typicality(typicality, change):
    content = typicality.to_json()
    change(content)
    assert not is_typicality(content, CLASSES)
    assert not is_typicality(typicality.to_json(), CLASSES + 1)
