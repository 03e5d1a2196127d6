import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.config import Affine, Mixing
from emnist_dali.core.errors import UserError
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part
from emnist_dali.data.stats import statistics
from emnist_dali.pipelines import reference
from emnist_dali.reports import pipeline_trace
from emnist_dali.reports.inspect_report import write_inspect_report
from emnist_dali.reports.pipeline_trace import choose_batches, denormalize, equalize, trace, training_plan
from emnist_dali.reports.run_data import part_name
from emnist_dali.training.build import build_training

from ..training_runs import small

CLASSES = "0123456789Aa"
SIZE, SEED = 20, 3
MIXING = Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.9, switch=0.5)


def config_of(data_dir, **options):
    return small(data_dir, None, **{"image_size": SIZE, "batch_size": 64, "seed": SEED, **options})


@pytest.fixture(scope="module")
def shards(folder):
    return Shards(folder, "train")


@pytest.fixture(scope="module")
def stats(folder):
    return statistics(folder, SIZE)


def traced(data_dir, shards, stats, batch=0, label=None, augmented=True, **options):
    config = config_of(data_dir, **options)
    return trace(config, training_plan(config, shards), stats, batch, label, augmented)


def batches_of(config, shards, number):
    """The first batches of the training that `config` asks for, as the trainer gets and mixes them."""
    with build_training(config, shards) as training:
        loop = training.trainer
        for loop.step, batch in zip(range(number), training.loader, strict=False):
            loop.micro = loop.step
            images, targets = loop._mix(batch)
            yield batch.images.numpy().copy(), batch.labels.numpy().copy(), images.numpy().copy(), targets.numpy()


def test_the_stages_without_augmentation_are_those_of_the_reference(data_dir, shards, stats):
    found = traced(data_dir, shards, stats, augmented=False)
    assert list(found.stages) == ["decoded", "equalized", "resized"]
    np.testing.assert_array_equal(found.stages["decoded"], shards.images(found.indices))
    np.testing.assert_array_equal(found.labels, shards.labels(found.indices))
    for image, even, resized in zip(*found.stages.values(), strict=True):
        np.testing.assert_array_equal(even, cv2.equalizeHist(image))
        expected = reference.preprocess(image, SIZE, stats.mean, stats.std)
        assert np.abs(resized - expected).max() * stats.std * 255 <= 1
        assert resized.shape == (SIZE, SIZE)


def test_images_that_are_not_square_are_equalized_too(drawn, tmp_path):
    parts = {name: Part(part.images[:, :, 4:21], part.labels) for name, part in drawn.parts.items()}
    pack(replace(drawn, parts=parts), "narrow", tmp_path)
    shards = Shards(tmp_path, "train")
    for image, even in zip(parts["train"].images[:9], equalize(shards, np.arange(9)), strict=True):
        np.testing.assert_array_equal(even, cv2.equalizeHist(np.ascontiguousarray(image)))


def test_warped_images_are_those_of_the_first_training_batch(data_dir, shards, stats):
    config = config_of(data_dir)
    found = traced(data_dir, shards, stats)
    assert list(found.stages) == ["decoded", "equalized", "resized", "warped"]
    images, labels, *_ = next(batches_of(config, shards, 1))
    assert len(found.labels) == pipeline_trace.ROWS
    for warped, label in zip(found.stages["warped"], found.labels, strict=True):
        places = [k for k in range(64) if np.array_equal(images[k, 0], warped)]
        assert [labels[k] for k in places] == [label]
    assert not np.array_equal(found.stages["warped"], found.stages["resized"])


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"mixing": MIXING}, {"not", "up", "cut"}),
        ({"mixing": MIXING, "label_smoothing": 0.0}, {"not", "up", "cut"}),
        ({"mixing": replace(MIXING, until=0.2, probability=1.0, switch=1.0)}, {"not", "cut"}),
        ({}, {"not"}),
    ],
    ids=["mixing", "everything", "mixing that ends", "no mixing"],
)
def test_what_is_shown_last_is_what_the_trainer_gets(options, kinds, data_dir, shards, stats):
    seen = set()
    for i, (images, labels, mixed, targets) in enumerate(batches_of(config_of(data_dir, **options), shards, 8)):
        found = traced(data_dir, shards, stats, i, **options)
        seen.add("not" if found.mix.weight == 1 else "cut" if found.mix.box else "up")
        places = np.sort(np.unique(labels, return_index=True)[1])[: pipeline_trace.ROWS]
        np.testing.assert_array_equal(found.labels, labels[places])
        np.testing.assert_array_equal(found.partners, labels[::-1][places])
        np.testing.assert_array_equal(found.stages["warped"], images[places, 0])
        np.testing.assert_allclose([*found.stages.values()][-1], mixed[places, 0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.targets, targets[places], rtol=0, atol=1e-6)
    assert i == 7
    assert seen == kinds


def test_a_batch_of_each_kind_is_choose_batches(data_dir, shards):
    config = config_of(data_dir, mixing=MIXING)
    plan = training_plan(config, shards)
    up, cut = (pipeline_trace.mix_of(config, plan, i) for i in choose_batches(config, plan, None, True))
    assert up.box is None
    assert cut.box
    assert 0.2 < up.weight < 0.8
    assert 0.2 < cut.weight < 0.8
    assert len(choose_batches(config, plan, None, False)) == 1
    for label in range(12):
        assert all(label in plan.batch(i).labels for i in choose_batches(config, plan, label, True))


def test_a_recipe_with_larger_batches_than_data_is_shown_with_all_of_them(data_dir, shards, stats):
    found = traced(data_dir, shards, stats, batch_size=4096)
    assert training_plan(config_of(data_dir, batch_size=4096), shards).spec.batch_size == 576
    assert len(found.labels) == pipeline_trace.ROWS


def test_normalized_images_are_drawn_by_the_statistics(stats):
    levels = np.array([-50, 0, 100.4, 255, 300])
    normalized = (levels / 255 - stats.mean) / stats.std
    assert denormalize(normalized, stats).tolist() == [0, 0, 100, 255, 255]


def invoke(*arguments):
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


@pytest.fixture(scope="module")
def page(data_dir, tmp_path_factory):
    """The page of what the recipe `published` does, which warps and mixes."""
    out = tmp_path_factory.mktemp("inspected") / "new" / "page.html"
    result = invoke(
        "--split", "small", "--source", "glyphs", "--data-dir", data_dir, "--recipe", "published",
        "--image-size", SIZE, "--augment", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(out)
    return out


def test_the_page_tells_what_the_manifest_does(page, shards, stats):
    text = page.read_text()
    manifest = shards.manifest
    assert str(manifest) in text
    assert "600 train, 108 test" in text
    assert f"mean {stats.mean:.4f}, standard deviation {stats.std:.4f}" in text
    for part, counts in manifest.counts.items():
        told = re.findall(rf'data-tip="[^"]*{part_name(part)}: ([\d,]+) images', text)
        assert [int(count) for count in told] == list(counts)
    assert "MixUp λ = " in text or "CutMix λ = " in text
    assert "warps them and mixes them" in text


def test_the_page_needs_nothing_but_itself(page):
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) > 100
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in text


def test_the_page_fits_a_phone_without_an_error(page, browser):
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    errors = []
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page.as_uri())
    assert tab.locator(".chart svg[role=img]").count() == 2
    assert errors == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    tab.close()


def test_one_class_is_shown_alone(data_dir, tmp_path, shards):
    out = write_inspect_report(config_of(data_dir), "a", False, tmp_path / "page.html")
    text = out.read_text()
    indices = [int(i.replace(",", "")) for i in re.findall(r"train image ([\d,]+)", text)]
    assert len(indices) > 50  # each image of the class, and those that are followed
    assert {CLASSES[label] for label in shards.labels(np.array(indices))} == {"a"}
    assert "a: 50 train, 9 test" in text
    assert "warps them and mixes nothing; --augment shows it" in text


@pytest.mark.parametrize("affine", [None, Affine(rotation=(0.1,))])
def test_the_page_says_what_a_recipe_does_not_do(affine, data_dir, tmp_path):
    config = config_of(data_dir)
    config = replace(config, data=replace(config.data, affine=affine))
    text = write_inspect_report(config, "0", True, tmp_path / "page.html").read_text()
    assert ("warps nothing" in text) == (affine is None)
    assert "mixes nothing" in text


def test_class_names_are_escaped(drawn, tmp_path):
    names = ("<i>&", "a word of more than twenty-four letters", *CLASSES[2:])
    pack(replace(drawn, classes=names), "words", tmp_path / "demo" / "words")
    config = config_of(tmp_path, split="words")
    for character in (None, "<i>&"):
        text = write_inspect_report(config, character, True, tmp_path / "page.html").read_text()
        assert "&lt;i&gt;&amp;" in text
        assert "<i>" not in text


@pytest.mark.parametrize("character", ["b", "", "a" * 3])
def test_an_unknown_class_is_one_sentence(character, data_dir, tmp_path):
    result = invoke(
        "--split", "small", "--source", "glyphs", "--data-dir", data_dir, "--image-size", SIZE,
        "--class", character, "--out", tmp_path / "page.html",
    )  # fmt: skip
    assert result.exit_code == 1
    assert f"small has no class {character!r}; take one of 0, 1, 2" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "page.html").exists()


def test_a_class_without_training_images_is_one_sentence(drawn, tmp_path):
    train = drawn.parts["train"]
    kept = train.labels != CLASSES.index("7")
    parts = {**drawn.parts, "train": Part(train.images[kept], train.labels[kept])}
    pack(replace(drawn, parts=parts), "small", tmp_path / "demo" / "small")
    with pytest.raises(UserError, match="no training image of class '7'"):
        write_inspect_report(config_of(tmp_path), "7", True, tmp_path / "page.html")
    assert write_inspect_report(config_of(tmp_path), None, True, tmp_path / "page.html").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(data_dir, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be created"):
        write_inspect_report(config_of(data_dir), None, False, tmp_path / "file" / "page.html")


def test_a_file_of_somebody_else_stays(data_dir, tmp_path):
    out = tmp_path / "notes.html"
    out.write_text("my own")
    with pytest.raises(UserError, match="was not written by emnist-dali"):
        write_inspect_report(config_of(data_dir), None, False, out)
    assert out.read_text() == "my own"
    out.unlink()
    write_inspect_report(config_of(data_dir), "0", False, out)
    assert write_inspect_report(config_of(data_dir), "0", False, out).stat().st_size > 1000
