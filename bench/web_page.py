"""A page that `emnist-dali export --format web` wrote, in headless Chromium: its answers, and their milliseconds."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emnist_dali.core.errors import UserError

# A worker as the page's, which answers images instead of pictures, each alone.
_START = """async () => {
    await started
    const classify = `
        const answerPage = onmessage
        onmessage = async event => {
            if (!event.data.images) return answerPage(event)
            const answers = []
            for (const image of event.data.images) {
                const start = performance.now()
                const images = new ort.Tensor("uint8", image, [1, ...event.data.shape])
                const { probabilities } = await session.run({ images })
                answers.push([probabilities.data.indexOf(Math.max(...probabilities.data)), performance.now() - start])
            }
            postMessage(answers)
        }`
    const scripts = [RUNTIME.script, "\\n", find("worker").textContent, classify]
    const worker = new Worker(URL.createObjectURL(new Blob(scripts, { type: "text/javascript" })))
    window.ask = message => new Promise(done => {
        worker.onmessage = ({ data }) => done(data)
        worker.postMessage(message)
    })
    await ask({ module: RUNTIME.module, wasm: RUNTIME.wasm, onnx: MODEL.onnx, shape: MODEL.shape })
}"""
_CLASSIFY = """async text => {
    const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0))
    const [height, width] = MODEL.shape, size = height * width
    const images = Array.from({ length: bytes.length / size }, (_, i) => bytes.slice(i * size, (i + 1) * size))
    return await ask({ images, shape: MODEL.shape })
}"""
_RECOGNIZE = """async ([text, count]) => {
    const image = new Image()
    image.src = `data:image/png;base64,${text}`
    await image.decode()
    paper.drawImage(image, 0, 0)
    const times = []
    for (let i = 0; i < count; i++) {
        const start = performance.now()
        await recognize(canvas)
        times.push(performance.now() - start)
    }
    return times
}"""


class WebPage:
    """An open page; `browser` is its Chromium's version."""

    def __init__(self, page: Any, folder: Path) -> None:
        self._page = page
        page.goto(f"{folder.resolve().as_uri()}/index.html")
        page.evaluate(_START)
        self.name: str = page.evaluate("() => MODEL.name")
        self.classes: tuple[str, ...] = tuple(page.evaluate("() => MODEL.classes"))
        self.browser: str = page.context.browser.version

    def classify(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, H, W) uint8 → the model's class and its milliseconds for each alone."""
        answers = self._page.evaluate(_CLASSIFY, base64.b64encode(images.tobytes()).decode())
        labels, milliseconds = np.array(answers).T
        return labels.astype(int), milliseconds

    def recognize(self, drawing: bytes, count: int) -> np.ndarray:
        """Milliseconds, `count` times, from a PNG of the canvas' size on the canvas to the page's answer."""
        return np.array(self._page.evaluate(_RECOGNIZE, [base64.b64encode(drawing).decode(), count]))


def chromium() -> str:
    """Path of the program; raises UserError if there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        raise UserError("no Chromium is installed; apt-get install chromium.")
    return found


@contextmanager
def open_page(folder: Path) -> Iterator[WebPage]:
    """Raises UserError if playwright or Chromium is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UserError(f"playwright could not be imported ({error}); pip install '.[dev]'.") from error
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield WebPage(browser.new_page(), folder)
        browser.close()
