import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard

import emnist_dali
from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import check_output
from emnist_dali.core.tensor_files import encode
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats
from emnist_dali.deploy import export as export_module
from emnist_dali.deploy import int8 as int8_module
from emnist_dali.deploy.export import export, synthetic_images
from emnist_dali.deploy.exportable import ExportableModel, equalize
from emnist_dali.deploy.int8 import Sample, quantize
from emnist_dali.evaluation.metrics import score
from emnist_dali.loading.sampling import holdout
from emnist_dali.models import import_path
from emnist_dali.models.build import build_model
from emnist_dali.runs.checkpoint import load_weights, save_weights
from emnist_dali.runs.classifier import load_classifier
from emnist_dali.runs.onnx_checks import append_digest
from emnist_dali.runs.onnx_classifier import OnnxClassifier
from emnist_dali.runs.predictions import Predictions
from emnist_dali.runs.trained_classifier import TrainedClassifier

from ..installation import left_out
from .test_emnist_style import picture_of

CLASSES = "0123456789Aa"


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """A copy of the run, exported as ONNX, pt2, safetensors and ONNX in int8."""
    path = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(trained_run, path)
    for kind in ("onnx", "pt2", "safetensors"):
        result = invoke("export", path, "--format", kind)
        assert result.exit_code == 0, result.output
        assert f"{path / 'model'}.{kind}: " in result.output
        assert "108 test images and 956 synthetic ones: the same class on 1,064 of 1,064" in result.output
        assert result.output.count("\n") == 3  # nothing from torch's exporters
    result = invoke("export", path, "--int8")
    assert result.exit_code == 0, result.output
    assert result.output.count("\n") == 4
    return path


@pytest.fixture(scope="module")
def images(folder):
    shards = Shards(folder, "test")
    return np.concatenate([shards.images(np.arange(len(shards))), synthetic_images((28, 28), 20)])


@pytest.mark.parametrize("equalized", [True, False])
@pytest.mark.parametrize(("shape", "size"), [((28, 28), 28), ((28, 28), 112), ((28, 28), 45), ((20, 24), 32)])
def test_the_exportable_model_preprocesses_as_the_classifier_does(trained_run, shape, size, equalized):
    images, trained = synthetic_images(shape, 30), TrainedClassifier(trained_run)
    trained.shape, trained.stats = shape, Stats(0.2, 0.3, equalized)
    trained.config = trained.config.override({"image_size": size})
    seen = []
    raw = ExportableModel(lambda inputs: seen.append(inputs) or inputs.flatten(1), size, trained.stats)
    raw(torch.from_numpy(images))
    torch.testing.assert_close(seen[0], trained.preprocess(images), rtol=0, atol=2e-5)


def test_equalization_is_bit_exact_to_opencv():
    generator = np.random.default_rng(0)
    two_levels = np.where(generator.random((50, 28, 28)) < generator.random((50, 1, 1)), 3, 250).astype(np.uint8)
    images = np.concatenate([synthetic_images((28, 28), 300), two_levels])
    for image, equalized in zip(images, equalize(torch.from_numpy(images)).numpy(), strict=True):
        assert np.array_equal(equalized, cv2.equalizeHist(image))


def test_onnx_agrees_with_the_trained_model(run, images):
    trained, exported = TrainedClassifier(run), load_classifier(run / "model.onnx")
    assert isinstance(exported, OnnxClassifier)
    for name in ("name", "classes", "shape", "converted"):
        assert getattr(exported, name) == getattr(trained, name)
    expected, actual = trained.probabilities(images), exported.probabilities(images)
    assert actual.dtype == np.float32
    assert np.array_equal(actual.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_one_file_takes_batches_of_any_size(run, images, count):
    exported, module = OnnxClassifier(run / "model.onnx"), torch.export.load(run / "model.pt2").module()
    last = slice(len(images) - count, None)
    some, expected = images[last], exported.probabilities(images)[last]
    assert exported.probabilities(some).shape == (count, 12)
    np.testing.assert_allclose(exported.probabilities(some), expected, rtol=0, atol=1e-5)
    if count:
        with torch.inference_mode():
            np.testing.assert_allclose(module(torch.from_numpy(some)).numpy(), expected, rtol=0, atol=1e-5)


def test_onnx_metadata(run):
    import onnx

    model = onnx.load(run / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.metadata_props[-1].key == "sha256"
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props[:-1]}
    weights = load_weights(run / "checkpoints/best.safetensors")[1]
    assert weights.pop("calibration")  # which is in the graph
    assert about.items() >= weights.items()
    assert "calibration" not in about
    assert about["recipe"] == "cpu"
    test = next(line for line in map(json.loads, (run / "metrics.jsonl").open()) if line["kind"] == "test")
    assert about["test"]["accuracy"] == test["accuracy"]
    assert about["test"]["images"] == 108
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "probabilities"]


def test_the_files_hold_no_path_of_this_machine(run):
    folders = [Path(emnist_dali.__file__).parents[1], Path.home(), Path(torch.__file__).parents[1], run]
    for name in ("model.onnx", "model.pt2", "model.safetensors", "model.md", "model-int8.onnx", "model-int8.md"):
        content = (run / name).read_bytes()
        if name == "model.pt2":
            with zipfile.ZipFile(run / name) as archive:
                content += b"".join(map(archive.read, archive.namelist()))
        assert not [folder for folder in folders if folder != Path("/") and str(folder).encode() in content]
        assert b"site-packages" not in content


@pytest.mark.parametrize("folder", ["/home/me/emnist", "C:\\Users\\me\\emnist", "emnist"])
def test_of_the_datas_folder_only_the_name_is_told(trained_run, tmp_path, folder):
    path = tmp_path / "run"
    shutil.copytree(trained_run, path)
    weights, about = load_weights(trained_run / "checkpoints/best.safetensors")
    about["data"] = f"small from {folder} (not the official split)"
    (path / "checkpoints/best.safetensors").write_bytes(encode(weights, {"about": json.dumps(about)}))
    export(path, "safetensors")
    told = "small from emnist (not the official split)"
    assert load_weights(path / "model.safetensors")[1]["data"] == told
    card = (path / "model.md").read_text()
    assert f"| data | {told} |" in card
    assert "me" not in re.split(r"\W", card.partition("## Input")[0])


def test_int8_is_a_quarter_as_large_and_answers_alike(run, images):
    assert (run / "model-int8.onnx").stat().st_size < 0.3 * (run / "model.onnx").stat().st_size
    exact, int8 = (load_classifier(run / name).probabilities(images) for name in ("model.onnx", "model-int8.onnx"))
    assert (int8.argmax(1) == exact.argmax(1)).mean() > 0.95
    assert np.abs(int8 - exact).mean() < 0.01


def test_int8_is_for_convolutions_and_matrix_products(run):
    import onnx

    model = onnx.load(run / "model-int8.onnx")
    assert [opset.domain for opset in model.opset_import] == [""]
    made_by = {output: node for node in model.graph.node for output in node.output}
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(heavy) == 6
    for node in heavy:
        assert all(made_by[name].op_type == "DequantizeLinear" for name in node.input)
    kinds, waiting = set(), [made_by[made_by[heavy[0].input[0]].input[0]].input[0]]  # what the first is given
    while waiting:
        if node := made_by.get(waiting.pop()):
            kinds.add(node.op_type)
            waiting += node.input
    assert {"Resize", "Div", "Sub"} < kinds
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}


def test_int8_is_calibrated_and_compared_on_different_training_images(trained_run, monkeypatch):
    trained = TrainedClassifier(trained_run)
    few = Sample.of(trained)
    assert few.description == f"{len(few.comparison):,} other training images"
    monkeypatch.setattr(int8_module, "FEWEST", 10)
    enough = Sample.of(trained)
    assert enough.description == f"{len(enough.comparison):,} validation images"
    data, labels = trained.config.data, enough.shards.labels()
    training, validation = holdout(labels, data.val_fraction, trained.config.training.seed)
    assert np.array_equal(enough.comparison, validation)
    for sample in (few, enough):
        assert sample.shards.part == "train"
        assert set(sample.calibration) < set(training)
        assert set(labels[sample.calibration]) == set(range(12))
        assert not set(sample.calibration) & set(sample.comparison)
    trained.about["fingerprint"] = "of other data"
    assert Sample.of(trained).description.endswith("other training images")


def test_int8_that_is_less_accurate_is_not_written(trained_run, tmp_path, monkeypatch):
    from onnx import TensorProto

    def without_weights(model, sample):
        model = quantize(model, sample)
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
                tensor.raw_data = bytes(len(tensor.raw_data))
        return model

    monkeypatch.setattr(export_module, "quantize", without_weights)
    result = invoke("export", trained_run, "--int8", "--output", tmp_path / "model.onnx")
    assert result.exit_code == 1
    assert re.search(r"not written: on 3\d\d other training images it has an accuracy of 8\.\d\d %", result.output)
    assert "export without --int8." in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["no data", "other classes", "pt2"])
def test_int8_where_it_cannot_be(run, tmp_path, monkeypatch, wrong):
    path, message = tmp_path / "run", "has other classes"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("model*"))
    if wrong == "no data":
        config = TrainedClassifier(run).config.override({"data_dir": str(tmp_path / "nowhere")})
        (path / "config.json").write_text(json.dumps(config.to_dict()))
        message = "nowhere/demo/small holds no prepared data"
    elif wrong == "other classes":
        weights, about = load_weights(run / "checkpoints/best.safetensors")
        about["classes"] = [*CLASSES[:-1], "z"]
        (path / "checkpoints/best.safetensors").write_bytes(encode(weights, {"about": json.dumps(about)}))
    result = invoke("export", path, "--int8", "--format", "pt2" if wrong == "pt2" else "onnx")
    assert result.exit_code == 1
    assert ("--int8 is for ONNX, not for pt2" if wrong == "pt2" else message) in result.output
    assert not list(path.glob("model*"))


def test_the_int8_card_claims_no_results_as_its_own(run):
    card = (run / "model-int8.md").read_text()
    assert "parameters in 8-bit integers" in card
    assert "those of the trained model in floating point" in card
    assert re.search(r"the same class on \d+\.\d\d %; an accuracy of", card)
    assert ModelCard(card).data.eval_results is None
    assert OnnxClassifier(run / "model-int8.onnx").name == "run"


def test_safetensors_hold_the_weights_of_the_run(run):
    weights, about = load_weights(run / "model.safetensors")
    best, known = load_weights(run / "checkpoints/best.safetensors")
    assert about.items() >= known.items()
    assert about["recipe"] == "cpu"
    assert weights.keys() == best.keys()
    assert all(torch.equal(weights[name], best[name]) for name in best)


def test_the_model_card_tells_what_there_is_to_know(run):
    card = (run / "model.md").read_text()
    test = next(line for line in map(json.loads, (run / "metrics.jsonl").open()) if line["kind"] == "test")
    for words in (
        "small, drawn glyphs and not EMNIST",
        "emnist_fast_wide",
        f"| test | 108 | {test['accuracy']:.4f} |",
        json.dumps(list(CLASSES)),
        "(N, 28, 28) uint8",
        "1,064",
    ):
        assert words in card


def test_the_model_cards_header_is_metadata_for_the_hub(run):
    metadata = ModelCard((run / "model.md").read_text()).data
    test = next(line for line in map(json.loads, (run / "metrics.jsonl").open()) if line["kind"] == "test")
    assert (metadata.library_name, metadata.license, metadata.datasets) == ("emnist-dali", "unknown", None)
    assert metadata.metrics == ["accuracy", "f1"]
    assert {result.dataset_type for result in metadata.eval_results} == {"small"}
    assert metadata.eval_results[0].dataset_name == "small, drawn glyphs and not EMNIST"
    found = {result.metric_type: result.metric_value for result in metadata.eval_results}
    assert found == {"accuracy": round(test["accuracy"], 4), "f1": round(test["weighted_f1"], 4)}


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (None, "timm's pretrained weights, whose licence applies too"),
        ("builtin", "the model in emnist-dali, whose licence applies too"),
        ("/home/me/weights.safetensors", "weights in a file, whose licence applies too"),
    ],
)
def test_the_model_card_tells_which_weights_it_began_with(run, tmp_path, weights, told):
    path = tmp_path / "run"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("model*"))
    config = TrainedClassifier(run).config.override({"model.pretrained": True, "model.weights": weights})
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    export(path, "safetensors")
    assert f"| initialized from | {told} |" in (path / "model.md").read_text()


def test_the_model_card_names_files_of_the_same_weights_only(run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    assert "All of that is in `model.onnx` and `model.pt2`, whose output is" in (path / "model.md").read_text()
    weights, about = load_weights(path / "checkpoints/best.safetensors")
    about = {"about": json.dumps({**about, "step": about["step"] + 1})}
    (path / "checkpoints/best.safetensors").write_bytes(encode(weights, about))
    export(path, "safetensors")
    card = (path / "model.md").read_text()
    assert "The answer is `probabilities`" in card
    assert "`model.safetensors`:" in card
    assert not re.search(r"model\.(onnx|pt2)|ONNX", card)


def test_the_model_cards_examples_run(run, monkeypatch):
    monkeypatch.chdir(run)
    examples = re.findall(r"```python\n(.*?)```", (run / "model.md").read_text(), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        with redirect_stdout(io.StringIO()) as printed:
            exec(example, {})
        assert printed.getvalue().strip() in {f"['{character}']" for character in CLASSES}


def test_any_timm_model_exports(run, images, tmp_path):
    """With another stem stride, mixed precision and no test images."""
    trained = TrainedClassifier(run)
    model = replace(trained.config.model, model="test_efficientnet", stem_stride=1)
    config = replace(trained.config, model=model).override({"image_size": 32, "amp": "bf16", "data_dir": "nowhere"})
    path = tmp_path / "other"
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    result = score(Predictions(torch.eye(12)[[1, 0, 2]], torch.tensor([0, 0, 2])), CLASSES)
    (path / "metrics.jsonl").write_text(json.dumps({"kind": "test", **result}))
    save_weights(path / "checkpoints/best.safetensors", build_model(model, 12), trained.about)
    lines = export(path, "onnx")
    assert "0 test images and 1,064 synthetic ones" in lines[1]
    assert "In bf16" in lines[2]
    assert "0 predicted as 1: 50.0 % of 0 (1)" in (path / "model.md").read_text()


NET = """
from torch import nn

def net(num_classes, in_chans, img_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, num_classes))
"""


@pytest.mark.parametrize("name", ["test_vit", "nets_of_mine:net"])
def test_the_example_makes_networks_for_one_size_and_those_of_the_user(name, run, tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text(NET)
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(import_path, "_trusted", {name})
    trained = TrainedClassifier(run)
    model = replace(trained.config.model, model=name)
    config = replace(trained.config, model=model).override({"image_size": 32, "data_dir": "nowhere"})
    Path("config.json").write_text(json.dumps(config.to_dict()))
    save_weights(Path("checkpoints/best.safetensors"), build_model(model, 12, 32), trained.about)
    export(Path(), "safetensors")
    (example,) = re.findall(r"```python\n(.*?)```", Path("model.md").read_text(), re.DOTALL)
    found = {}
    exec(example, found)
    assert found["logits"].shape == (1, 12)


def offset(found):
    return found + np.float32(2e-3)


def nan(found):
    found[-1, -1] = np.nan
    return found


def other_class(found):
    """Swaps the two highest of the last image, by less than the tolerance."""
    first, second = found[-1].argsort()[[-1, -2]]
    found[-1, first] = found[-1, second] = found[-1, [first, second]].mean()
    found[-1, second] += 1e-4
    return found


@pytest.mark.parametrize(
    ("kind", "spoiled", "message"),
    [
        ("onnx", offset, "by up to 0.002"),
        ("pt2", offset, "by up to 0.002"),
        ("safetensors", offset, "by up to 0.002"),
        ("safetensors", nan, "by up to nan"),
        ("safetensors", other_class, "its class on 1;"),
    ],
)
def test_a_model_whose_answers_differ_is_not_written(trained_run, tmp_path, monkeypatch, kind, spoiled, message):
    real, calls = TrainedClassifier.probabilities, []

    def first_spoiled(self, images):
        calls.append(real(self, images))
        return spoiled(calls[0]) if len(calls) == 1 else calls[-1]

    monkeypatch.setattr(TrainedClassifier, "probabilities", first_spoiled)
    monkeypatch.setattr(export_module, "TOLERANCE", 1.0 if spoiled is other_class else export_module.TOLERANCE)
    result = invoke("export", trained_run, "--format", kind, "--output", tmp_path / f"model.{kind}")
    assert result.exit_code == 1
    assert "was not written" in result.output
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_exported(trained_run, tmp_path, monkeypatch):
    def forward(self, images):
        return images.flatten(1)[:, : int(images.sum())]

    monkeypatch.setattr(ExportableModel, "forward", forward)
    result = invoke("export", trained_run, "--format", "pt2", "--output", tmp_path / "model.pt2")
    assert result.exit_code == 1
    assert "could not be exported as pt2" in result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_untested_run(run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join(line for line in lines if '"kind": "epoch"' in line))
    export(path, "safetensors")
    card = (path / "model.md").read_text()
    assert "has not been tested" in card
    assert ModelCard(card).data.eval_results is None
    assert "test" not in load_weights(path / "model.safetensors")[1]


@pytest.mark.parametrize("package", ["onnxruntime", "onnx", "onnxscript"])
def test_missing_packages(trained_run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = invoke("export", trained_run, "--output", tmp_path / "model.onnx")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {package} could not be imported")
    assert "pip install 'emnist-dali[export]'" in result.output
    assert not list(tmp_path.iterdir())


PREDICT = """
from emnist_dali.cli import main
main(["predict", *sys.argv[1:], "--json"], standalone_mode=False)
"""
SERVE = """
from pathlib import Path
from emnist_dali.deploy.serve import create_app
from emnist_dali.runs import load_classifier
model, picture = map(Path, sys.argv[1:])
print(create_app(load_classifier(model)).test_client().post("/predict", data=picture.read_bytes()).text)
"""
LOADED = f"print({left_out() | {'torchvision', 'nvidia.dali'}} & {{*sys.modules}})"


@pytest.mark.parametrize("script", [PREDICT, SERVE], ids=["predict", "serve"])
def test_reading_with_an_onnx_file_imports_no_torch_and_no_more_than_is_listed(run, tmp_path, script):
    picture_of("A").save(tmp_path / "picture.png")
    command = [sys.executable, "-c", f"import sys{script}{LOADED}", run / "model.onnx", tmp_path / "picture.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer, *_, loaded = done.stdout.splitlines()
    assert re.search(r'"character": ?"A"', answer)
    assert loaded == "set()"


def test_loading_onnx_without_onnxruntime(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"^onnxruntime could not be imported .*'emnist-dali\[export\]'\.$"):
        load_classifier(run / "model.onnx")


def test_onnx_files_from_elsewhere_are_refused(run, tmp_path):
    import onnx

    path = tmp_path / "other.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"other\.onnx could not be opened as ONNX"):
        load_classifier(path)
    content = (run / "model.onnx").read_bytes()
    for key, value, message in (
        ("classes", json.dumps(["a", "b"]), "not probabilities of its classes"),
        ("classes", json.dumps([1] * 12), "not distinct names"),
        ("shape", "{", "not from emnist-dali"),
        ("shape", None, "its metadata lack 'shape'"),
    ):
        model = onnx.load_model_from_string(content[:-76])
        entry = next(entry for entry in model.metadata_props if entry.key == key)
        if value is None:
            model.metadata_props.remove(entry)
        else:
            entry.value = value
        path.write_bytes(append_digest(model.SerializeToString()))
        with pytest.raises(UserError, match=message):
            load_classifier(path)


def test_a_damaged_onnx_is_refused(run, tmp_path):
    content, path = bytearray((run / "model.onnx").read_bytes()), tmp_path / "model.onnx"
    content[len(content) // 2] ^= 1  # of a weight
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged or not from emnist-dali \(its sha256 does not match"):
        load_classifier(path)


@pytest.mark.parametrize("kind", ["onnx", "pt2", "safetensors"])
def test_only_files_of_this_project_are_replaced(run, tmp_path, monkeypatch, kind):
    path = tmp_path / f"model.{kind}"
    shutil.copy(run / path.name, path)
    check_output(path)
    monkeypatch.setattr(export_module, "TrainedClassifier", lambda path: pytest.fail("work was done"))
    path.write_bytes(b"mine")
    result = invoke("export", run, "--format", kind, "--output", path)
    assert result.exit_code == 1
    assert "already exists and was not written by emnist-dali" in result.output
    assert path.read_bytes() == b"mine"


def test_only_a_model_card_that_nobody_edited_is_replaced(run, tmp_path):
    card = tmp_path / "README.md"

    def exported():
        result = invoke("export", run, "--format", "safetensors", "--output", tmp_path / "README.safetensors")
        assert result.exit_code == 0, result.output
        return result.output

    stays = f"{card} was edited or is not from emnist-dali, and was not replaced."
    card.write_text("# My project\n")
    assert stays in exported()
    assert card.read_text() == "# My project\n"
    card.unlink()
    for _ in range(2):
        assert f"{card}: model card." in exported()
    ours = card.read_text()
    assert re.fullmatch(r"<!-- emnist-dali:generated [0-9a-f]{64} -->", ours.splitlines()[-1])
    for edited in (ours.replace("Classes", "classes", 1), ours + "More.\n", ours[:-3], "\n" + ours):
        card.write_text(edited)
        assert stays in exported()
        assert card.read_text() == edited


def test_an_output_with_another_suffix_is_refused(trained_run, tmp_path):
    result = invoke("export", trained_run, "--output", tmp_path / "model.md")
    assert result.exit_code == 1
    assert "does not end in .onnx" in result.output
    assert invoke("export", trained_run, "--format", "tflite").exit_code == 2
