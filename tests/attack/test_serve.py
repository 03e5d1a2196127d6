"""The server answers its users under attack: idle and trickling connections, endless bodies, bombs."""

import base64
import http.client
import io
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emnist_dali.deploy import serve
from emnist_dali.deploy.posted_pictures import DECODING_TIMEOUT

from ..deploy.test_emnist_style import picture_of
from .tally import FACTOR

# Concurrent users, idle connections and bombs; the first numbers are those of the large run.
CLIENTS, IDLE, BOMBS = (200, 100, 50) if FACTOR > 1 else (20, 20, 5)
PATIENCE = 60  # seconds; only reached if something hangs


@pytest.fixture(scope="module")
def port(trained_run: Path) -> Iterator[int]:
    """The port of a server in another process."""
    command = [sys.executable, "-m", "emnist_dali", "serve", str(trained_run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
        process.terminate()
        assert process.stdout.read() == ""  # despite all attacks


def picture(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def post(port: int, content: bytes, kind: str = "image/png") -> tuple[int, Any]:
    """Status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/predict", content, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def bombs() -> list[bytes]:
    """Slow pictures that are allowed, and some that are not."""
    side = (7000, 7100) if FACTOR > 1 else (3000, 3000)
    see_through = Image.new("RGBA", side, (0, 0, 0, 9))
    return [
        picture(see_through, compress_level=1),
        picture(see_through, "WEBP", lossless=True, quality=0, method=0),
        picture(see_through.convert("RGB"), "JPEG", progressive=True),
        b"P2\n2000 1900\n255\n" + b"1 " * 3_800_000,
        b"P5\n1900 1000\n254\n" + bytes(1_900_000),
        b"P5\n" + b"#" * 7_000_000,
        b'{"image": [' + b"[]," * 2_000_000,
        json.dumps({"images": [base64.b64encode(picture(see_through, compress_level=1)).decode()] * 6}).encode(),
        b"--x\r\n" * 1_000_000,
    ]


KINDS = {b"{": "application/json", b"-": "multipart/form-data; boundary=x"}


def test_users_are_answered_under_attack(port):
    honest = [picture(picture_of(character, size=size)) for character in "0127Aa" for size in (28, 120, 300)]
    expected = {content: post(port, content)[1] for content in honest}
    attacks, over, refused, sent_away = bombs(), threading.Event(), [], []

    def bomb(number: int) -> None:
        chance = random.Random(number)
        while not over.wait(pause(chance)):
            content = chance.choice(attacks)
            with suppress(OSError, http.client.HTTPException):
                refused.append(post(port, content, KINDS.get(content[:1], "image/png"))[0])

    def pause(chance: random.Random) -> float:
        return chance.uniform(4, 12) if FACTOR > 1 else 0

    def idle(number: int) -> None:
        while not over.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
                if number % 2:
                    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n")
                while not over.wait(1):
                    connection.sendall(b"x" * (number % 2))

    def draw(number: int) -> list[float]:
        chance, took = random.Random(number), []
        for _ in range(4 if FACTOR > 1 else 2):
            time.sleep(pause(chance))
            content = chance.choice(honest)
            begun = time.monotonic()
            while (answered := post(port, content))[0] == 503:
                sent_away.append(number)
                time.sleep(serve.RETRY_AFTER)
            assert answered == (200, expected[content])
            took.append(time.monotonic() - begun)
        return took

    attackers = [threading.Thread(target=bomb, args=[i], daemon=True) for i in range(BOMBS)]
    attackers += [threading.Thread(target=idle, args=[i], daemon=True) for i in range(IDLE)]
    for attacker in attackers:
        attacker.start()
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            took = sorted(seconds for each in pool.map(draw, range(CLIENTS)) for seconds in each)
    finally:
        over.set()
    for attacker in attackers:
        attacker.join(PATIENCE)
    assert set(refused) <= {200, 400, 413, 503}
    assert not sent_away or CLIENTS + BOMBS > serve.MAX_REQUESTS
    if FACTOR > 1:
        middle = took[len(took) // 2]
        print(
            f"\n{len(took)} answers under {IDLE} idle connections and {BOMBS} bombs: "
            f"median {middle:.2f} s, 99 % {took[-len(took) // 100]:.2f} s, worst {took[-1]:.2f} s; "
            f"{len(refused)} bombs answered; {len(sent_away)} times 503"
        )


@pytest.mark.parametrize("form", ["by its length", "in chunks"])
def test_an_endless_body_is_refused_before_it_is_stored(port, form):
    size, piece, sent = 200 * 2**20, bytes(2**16), 0
    head = f"Content-Length: {size}" if form == "by its length" else "Transfer-Encoding: chunked"
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n".encode())
        if form == "by its length":
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")  # before any of it was sent
        with suppress(OSError):
            while sent < size:
                connection.sendall(b"10000\r\n" + piece + b"\r\n" if form == "in chunks" else piece)
                sent += len(piece)
    assert sent < 64 * 2**20  # what fits into the buffers of the system


def test_a_crowd_is_answered_or_asked_to_come_again(port):
    """Each with several images, so that they wait; more than there are threads, and nothing on the terminal."""
    images = [base64.b64encode(picture(picture_of(character))).decode() for character in "0127Aa"]
    body = json.dumps({"images": images}).encode()

    def ask(_: int) -> tuple[int, str | None, Any, float]:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with closing(connection):
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            # What else is in the batch changes the last digits on some CPUs.
            answer = json.loads(response.read(), parse_float=lambda text: round(float(text), 5))
            return response.status, response.getheader("Retry-After"), answer, time.monotonic() - began

    expected = ask(0)[2]
    with ThreadPoolExecutor(4 * serve.MAX_REQUESTS) as pool:
        answers = list(pool.map(ask, range(4 * serve.MAX_REQUESTS)))
    statuses = Counter(status for status, *_ in answers)
    assert set(statuses) == {200, 503}
    assert statuses[200] >= serve.MAX_REQUESTS
    for status, retry_after, answer, seconds in answers:
        if status == 503:
            assert int(retry_after) >= 1
            assert list(answer) == ["error"]
        else:
            for found, right in zip(answer, expected, strict=True):
                late = seconds > DECODING_TIMEOUT and found.get("error", "").endswith("send it in another request.")
                assert found == right or late
    assert any(answer == expected for _, _, answer, _ in answers)
    assert post(port, body, "application/json")[0] == 200


def test_silent_and_trickling_connections_are_closed(port):
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as silent:
        silent.sendall(b"POST /predict HTTP/1.1\r\n")
        assert silent.recv(1) == b""
