"""Downloads from a local server; none from npm."""

import hashlib
import io
import tarfile

import pytest

from emnist_dali.core.errors import UserError
from emnist_dali.deploy import onnxruntime_web
from emnist_dali.deploy.onnxruntime_web import Runtime, cached_package, load

from ..archive_server import serving

RUNTIME = Runtime("script", "module", bytes(range(256)) * 3000)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a package that is patched in as the official one, to an empty cache."""
    buffer = io.BytesIO()
    names = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as package:
        for name, content in zip(names, (b"script", b"module", RUNTIME.wasm), strict=True):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    monkeypatch.setattr(onnxruntime_web, "SHA512", hashlib.sha512(content).hexdigest())
    monkeypatch.setattr(onnxruntime_web, "BYTES", len(content))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(onnxruntime_web, "RETRY_DELAYS", (0, 0))
    with serving(content) as server:
        monkeypatch.setattr(onnxruntime_web, "URL", server.url)
        yield server


def test_it_is_downloaded_once(server):
    assert load() == RUNTIME
    assert load() == RUNTIME
    assert len(server.ranges_requested) == 1
    assert [path.name for path in cached_package().parent.iterdir()] == [cached_package().name]


def test_a_cut_transfer_is_tried_again(server):
    server.cuts = [100_000, 5000]
    assert load() == RUNTIME
    server.cuts = [100_000] * 3
    cached_package().unlink()
    with pytest.raises(UserError, match=r"could not be downloaded from http.*npm pack onnxruntime-web@"):
        load()
    assert not cached_package().exists()


def test_a_damaged_package_is_downloaded_again(server):
    load()
    content = cached_package().read_bytes()
    cached_package().write_bytes(content[:-1])
    assert load() == RUNTIME
    assert cached_package().read_bytes() == content


@pytest.mark.parametrize("other", [b"other", b"longer" * 10**6])
def test_something_else_is_not_used(server, other):
    server.data = other
    with pytest.raises(UserError, match=r"sends something other than onnxruntime-web-.*\.tgz"):
        load()
    assert not cached_package().exists()


def test_without_a_network_the_sentence_says_where_to_put_it(server, monkeypatch):
    monkeypatch.setattr(onnxruntime_web, "URL", "http://127.0.0.1:9/")
    content = server.data
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "Connection refused" in message
    assert f"npm pack onnxruntime-web@{onnxruntime_web.VERSION}" in message
    assert message.endswith(f"{cached_package()}.")
    assert "\n" not in message
    cached_package().parent.mkdir(parents=True)
    cached_package().write_bytes(content)
    assert load() == RUNTIME


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cache/emnist-dali/onnxruntime-web-.* cannot be used \(.*XDG_CACHE_HOME"):
        load()
