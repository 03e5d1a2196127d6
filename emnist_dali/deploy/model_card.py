"""The model card of an exported model, for whoever finds the file (Mitchell et al. 2019, arXiv:1810.03993)."""

import json
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import printable
from ..evaluation.metrics import confusions
from ..runs.classifier import TrainedClassifier
from ..runs.folder import RunFolder

_COLUMNS = ("accuracy", "weighted_f1", "macro_f1", "balanced_accuracy", "top3", "calibration_error")
_PACKAGES = ("emnist-dali", "torch", "timm")

_ONNX = """```python
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
images = np.zeros((1, {height}, {width}), np.uint8)  # yours
(probabilities,) = session.run(["probabilities"], {{"images": images}})
print([classes[label] for label in probabilities.argmax(1)])
```

Its metadata are JSON, a value each, but for `generator` and `sha256`; `emnist-dali predict {file} IMAGE` reads
pictures of any size.
"""
_PT2 = """```python
import json
import torch

about = {{"about.json": ""}}
model = torch.export.load("{file}", extra_files=about).module()
classes = json.loads(about["about.json"])["classes"]
images = torch.zeros(1, {height}, {width}, dtype=torch.uint8)  # yours
with torch.inference_mode():
    probabilities = model(images)
print([classes[label] for label in probabilities.argmax(1)])
```
"""
_SAFETENSORS = """```python
import json
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
{imports}
with safe_open("{file}", "pt") as file:
    classes = json.loads(file.metadata()["about"])["classes"]
net = timm.create_model("{model}", in_chans=1, num_classes={count}){stride}
net.load_state_dict(load_file("{file}"))
inputs = torch.zeros(1, 1, {size}, {size})  # yours, float32
with torch.inference_mode():
    probabilities = net.eval()(inputs).softmax(-1)
print([classes[label] for label in probabilities.argmax(1)])
```

These are weights alone: the preprocessing above is the caller's, in this order.
"""
_USE = {"onnx": _ONNX, "pt2": _PT2, "safetensors": _SAFETENSORS}


def model_card(
    trained: TrainedClassifier,
    facts: dict[str, Any],
    results: dict[str, dict[str, Any]],
    output: Path,
    formats: Sequence[str],
    checked: Sequence[str],
) -> str:
    """Markdown on the model in `output`, with an example for each of the `formats` that lie beside it.

    `facts` are what the file tells of itself, `results` those of `metrics.score` by part, `checked` the lines on its
    check against the trainer. UserError where the run's weights do not tell their data, epoch or step.
    """
    for name in ("data", "epoch", "step"):
        if name not in facts:
            raise UserError(f"{RunFolder(trained.path).best} does not tell its {name}; train the run anew.")
    config, (height, width), stats = trained.config, trained.shape, trained.stats
    training, size, model = config.training, config.data.image_size, config.model
    stem = printable(output.stem)
    mixing = "MixUp and CutMix" if training.mixing else "no mixing"
    start = "timm's pretrained weights, whose licence applies too" if model.pretrained else "random weights"
    equalized = "equalized by its histogram (OpenCV's `equalizeHist`), " if stats.equalize else ""
    in_code = {
        "file": stem,
        "height": height,
        "width": width,
        "model": model.model,
        "count": len(trained.classes),
        "size": size,
        "imports": "import emnist_dali.fast_net  # tells timm of it\n" if model.model.startswith("emnist_") else "",
        "stride": "",
    }
    if model.stem_stride:
        convolution = trained.model.pretrained_cfg["first_conv"]
        in_code["stride"] = (
            f'\nnet.get_submodule("{convolution}").stride = ({model.stem_stride}, {model.stem_stride})'
        )
    examples = "\n".join(
        f"`{stem}.{kind}`:\n\n" + _USE[kind].format(**in_code | {"file": f"{stem}.{kind}"}) for kind in formats
    )
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    other_images = (
        "Characters that look alike without context (0 and O; 1, I and l; C and c) are often confused.\n"
        "- Photographs and scans must first be turned into what EMNIST holds (blurred, cropped to the glyph, "
        "centred, light on dark), as `emnist-dali predict` does."
        if trained.converted
        else f"Other images must first be turned to grey and resized to {width}×{height}, their polarity kept."
    )
    return f"""# {printable(trained.name)}

Puts an image into one of {len(trained.classes)} classes: {model.model} with \
{sum(weight.numel() for weight in trained.model.parameters()):,} parameters, trained by emnist-dali.

| | |
|---|---|
| data | {facts["data"]} |
| recipe | {config.recipe} |
| started from | {start} |
| training | {training.epochs} epochs, batches of {config.data.batch_size * training.accumulation}, \
{training.optimizer}, learning rate {training.lr:g}, weight decay {training.weight_decay:g}, {training.schedule} |
| regularization | label smoothing {training.label_smoothing:g}, {mixing}, \
{"random warps" if config.data.affine else "no warps"}, \
{f"weights averaged (EMA {training.ema:g})" if training.ema else "no averaged weights"} |
| weights of | epoch {facts["epoch"] + 1}, step {facts["step"]:,}, seed {training.seed} |

## Results

{_table(facts, results)}

Fractions. {100 * config.data.val_fraction:g} % of the training images were held out for validation, which chose the
epoch; the test images are those of the same data, and were looked at after training.
{_confusions(results)}
## Input and output

`images`, (N, {height}, {width}) uint8, any N: upright, {"light on dark" if trained.converted else "as in training"}.
Each is {equalized}resized to {size}×{size} (bilinear, half-pixel centres, no antialiasing) and normalized as
(x / 255 − {stats.mean:.6g}) / {stats.std:.6g}. ONNX and pt2 hold all that; they give `probabilities`,
(N, {len(trained.classes)}) float32, in the order of the classes.

{examples}
## Classes

```json
{json.dumps(trained.classes, ensure_ascii=False)}
```

## Limits

- One class an image: nothing is searched for or separated, and there is no answer for «none of these».
- {other_images}
- The figures hold for images like the test's ({facts["data"]}); other writers, pens and scanners were not measured.

## Checked

{chr(10).join(f"- {line}" for line in checked)}
- {date.today().isoformat()}, {packages}

## Licence

None is claimed here for the weights: whoever publishes them names one, and heeds the terms of the data.
"""


def _table(facts: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    parts = {"validation": {name.removeprefix("val_"): facts[name] for name in facts if name.startswith("val_")}}
    header = ("part", "images", *(name.replace("_", " ") for name in _COLUMNS))
    rows = [header, ("---",) * len(header)]
    for part, result in (parts | results).items():
        figures = (f"{result[name]:.4f}" if name in result else "" for name in _COLUMNS)
        rows.append((part, f"{result['images']:,}" if "images" in result else "", *figures))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _confusions(results: dict[str, dict[str, Any]]) -> str:
    """The most frequent in the test, as a block of code: there a class may have any name."""
    if "test" not in results:
        return "\nThe run has not been tested.\n"
    lines = [
        f"{true} taken for {predicted}: {100 * share:.1f} % of {true} ({count:,})"
        for true, predicted, count, share in confusions(results["test"])
    ]
    if not lines:
        return "\nNo test image was taken for another class.\n"
    return "\nMost frequent confusions in the test:\n\n```\n" + "\n".join(lines) + "\n```\n"
