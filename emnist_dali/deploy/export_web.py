"""Exports a run as a folder of static files: a page to draw on, whose model runs in the browser."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.output_folder import check_output_folder, write_output_folder
from ..runs.classifier import Classifier
from ..runs.onnx_classifier import OnnxClassifier
from ..runs.trained_classifier import TrainedClassifier
from ..runs.typicality import LEAST, UNTYPICAL, WARNING
from . import onnxruntime_web
from .emnist_style import SIZE
from .export import check_onnx_is_installed, default_output, export_model
from .page import FOLDER, render_page


def export_web(run: Path, output: Path | None = None, *, int8: bool = False) -> list[str]:
    """Writes the folder `output`, by default web in the run's folder, with the files below; returns a report.

    index.html is the page; model.onnx is what `export` writes, and model.md its card; model.js has the same model
    for the page, and onnxruntime-web/ what runs it, which is downloaded from npm the first time. The page loads both
    as scripts, so that it also works from file://. Raises UserError, and writes nothing, as `export` does, if
    `output` holds anything else, if pictures are not converted to EMNIST's style for the model, and if
    onnxruntime-web is missing and cannot be downloaded.
    """
    output = output or default_output(run, "web")
    check_output_folder(output)
    check_onnx_is_installed()
    trained = TrainedClassifier(run)
    if not trained.converted or trained.shape != (SIZE, SIZE):
        raise UserError(
            f"{run} reads other images than EMNIST's, which the exported page cannot convert; "
            "use `emnist-dali serve`, or --format onnx."
        )
    runtime = onnxruntime_web.load()
    exported = export_model(trained, "onnx", output / "model.onnx", int8=int8)
    classifier = OnnxClassifier(output / "model.onnx", exported.content)
    page = render_page(classifier, ["draw.js", "ask_worker.js"], ["convert.js", "worker.js"])
    files = {
        "index.html": page.encode(),
        "model.onnx": exported.content,
        "model.md": exported.card.encode(),
        "model.js": _script(
            "MODEL",
            {
                "name": classifier.name,
                "classes": classifier.classes,
                "shape": classifier.shape,
                "typicality": page_typicality(classifier),
                "onnx": _packed(exported.content),
            },
            "model.onnx: its bytes, and what the page needs of its metadata",
        ),
        "onnxruntime-web/runtime.js": _script(
            "RUNTIME",
            {"script": runtime.script, "module": runtime.module, "wasm": _packed(runtime.wasm)},
            f"onnxruntime-web {onnxruntime_web.VERSION} from npm; MIT, see LICENSE; {onnxruntime_web.NOTICES}",
        ),
        "onnxruntime-web/LICENSE": (FOLDER / "onnxruntime-web-LICENSE").read_bytes(),
    }
    write_output_folder(output, files)
    sizes = ", ".join(f"{name} {len(content) / 1e6:.2f}" for name, content in files.items() if len(content) > 5000)
    return [
        f"{output}: {sum(map(len, files.values())) / 1e6:.2f} MB ({sizes}).",
        *exported.comparison,
        f"Open {output / 'index.html'} in a browser, or put the folder on any web server.",
    ]


def page_typicality(classifier: Classifier) -> dict[str, Any] | None:
    """What the page needs to warn of what is UNTYPICAL: it is so beyond the squared distance `farthest`."""
    if not classifier.typicality:
        return None
    fitted = classifier.typicality.to_json()
    farthest = classifier.typicality.distance_at(UNTYPICAL)
    return {
        "means": fitted["means"],
        "whitening": fitted["whitening"],
        "farthest": farthest,
        "least": LEAST,
        "warning": WARNING,
    }


def _packed(content: bytes) -> str:
    """Base64 of gzip: as small as a server that compresses would send it, by way of one that does not, too."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _script(name: str, value: dict[str, Any], comment: str) -> bytes:
    return f"// {comment}\nconst {name} = {json.dumps(value)}\n".encode()
