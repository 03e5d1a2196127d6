"""What a browser needs of onnxruntime-web, taken from its package on npm: downloaded once, checked by its hash.

The package has more than ten builds and takes 20 MB; the one used here runs on the CPU, in WebAssembly.
"""

import hashlib
import io
import os
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import requests

from ..core.errors import UserError
from ..core.files import atomic_write
from ..core.progress import progress
from ..data.download import root_cause

# The smallest that there was: 2.8 MB in gzip, where 1.30.0 has 3.7 MB. It is as fast.
VERSION = "1.21.1"
NAME = f"onnxruntime-web-{VERSION}.tgz"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/{NAME}"
NOTICES = f"https://github.com/microsoft/onnxruntime/blob/v{VERSION}/ThirdPartyNotices.txt"
BYTES = 19_931_970
# npm's `dist.integrity`, in hex.
SHA512 = (
    "6deef39a637dcfcbc28fb83a2c848d1b27961fda598e89838c16753d8b687681"
    "395425fb79b69b565df32474c68ce00116c8f60fe90d7f2e3c2fb357346194e3"
)
RETRY_DELAYS = (1, 2, 4)  # seconds before each retry
TIMEOUT = (10, 60)  # seconds: to connect, and between two packets
PACKET = 2**16


class Runtime(NamedTuple):
    """Files of the package: the script with the API, the module that it imports, and WebAssembly."""

    script: str
    module: str
    wasm: bytes


def cached_package() -> Path:
    """Where the downloaded package is kept, or is put by hand."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "emnist-dali" / NAME


def load() -> Runtime:
    """The runtime, from the cached package, which is downloaded if it is missing or damaged.

    Raises UserError if that fails.
    """
    path = cached_package()
    by_hand = f"or put what `npm pack onnxruntime-web@{VERSION}` downloads at this path"
    try:
        content = path.read_bytes() if path.is_file() else b""
        if not _is_official(content):
            content = _download()
            if not _is_official(content):
                raise UserError(
                    f"{URL} sends something other than {NAME} (its sha512 differs); try again, {by_hand}: {path}."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(content)
    except requests.RequestException as error:
        raise UserError(
            f"onnxruntime-web could not be downloaded from {URL} ({root_cause(error)}); check the connection, "
            f"{by_hand}: {path}."
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be used ({error.strerror}); free up space there, or set XDG_CACHE_HOME to another folder."
        ) from error
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        script, module, wasm = (
            package.extractfile(f"package/dist/{name}").read()
            for name in ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
        )
    return Runtime(script.decode(), module.decode(), wasm)


def _is_official(content: bytes) -> bool:
    return hashlib.sha512(content).hexdigest() == SHA512


def _download() -> bytes:
    """At most BYTES and a packet; raises requests.RequestException after the last retry."""
    for delay in (*RETRY_DELAYS, None):
        content = io.BytesIO()
        try:
            with (
                requests.get(URL, stream=True, timeout=TIMEOUT) as response,
                progress(description=NAME, total=BYTES, unit="B") as bar,
            ):
                response.raise_for_status()
                for packet in response.iter_content(PACKET):
                    bar.update(content.write(packet))
                    if content.tell() > BYTES:
                        break
            return content.getvalue()
        except requests.RequestException:
            if delay is None:
                raise
            time.sleep(delay)
    raise AssertionError
