"""The pictures in a request to the server."""

import base64
import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import UserError
from .decoder import BusyError

if TYPE_CHECKING:
    import flask

Found = TypeVar("Found")

# Images in one request: they pass through the model in one call, during which every other request waits.
MAX_IMAGES = 32
# Brackets, commas and colons in a JSON body: ours have three per image, as a data: URL in a list, and a few more;
# millions of them become 100 MB of Python objects.
MAX_JSON_SYMBOLS = 4 * MAX_IMAGES
DECODING_TIMEOUT = 30  # seconds, after which no more of a request's images are decoded
_FORMS = 'as the body, as {"image": base64 or a data: URL} in JSON, or as the file "image" of a form'


def read_pictures(request: "flask.Request") -> bytes | list[Any]:
    """The image file in a request; for several, a list of them, or of what JSON has in the place of each."""
    if request.is_json:
        return _read_json(request.get_data(cache=False))
    if request.mimetype == "multipart/form-data":
        files = request.files.getlist("image")
        if not files:
            raise UserError('The form has no file "image"; add it.')
        _check_number(files)
        return [file.read() for file in files] if len(files) > 1 else files[0].read()
    content = request.get_data(cache=False)
    if not content:
        raise UserError(f"The body is empty; send an image {_FORMS}.")
    return content


def _read_json(body: bytes) -> bytes | list[Any]:
    if sum(map(body.count, (b"[", b"{", b",", b":"))) > MAX_JSON_SYMBOLS:
        raise UserError(f"The JSON has more than {MAX_IMAGES} images, or much else; send fewer at a time.")
    try:
        content = json.loads(body)
        [(name, pictures)] = [(name, content[name]) for name in ("image", "images") if name in content]
        if name == "images" and not isinstance(pictures, list):
            raise TypeError("it is no list")
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise UserError(
            'The JSON has neither an image nor a list of them; send {"image": base64 or a data: URL}, or several as '
            '{"images": [...]}.'
        ) from error
    if name == "image":
        return _decode_base64(pictures)
    _check_number(pictures)
    return pictures


def _check_number(pictures: Sequence[Any]) -> None:
    if not 1 <= len(pictures) <= MAX_IMAGES:
        raise UserError(f"The request has {len(pictures)} images; send 1 to {MAX_IMAGES} at a time.")


def _decode_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text.rpartition(",")[2])
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError("The picture is no text in base64, and no data: URL with one; encode it so.") from error


def decode_all(pictures: Sequence[Any], decode: Callable[[bytes], Found]) -> list[Found | UserError]:
    """Each of `read_pictures` as the model takes it, or why not; within DECODING_TIMEOUT and one picture's time."""
    deadline, found = time.monotonic() + DECODING_TIMEOUT, []
    for picture in pictures:
        try:
            if time.monotonic() > deadline:
                raise BusyError(f"The images before it took {DECODING_TIMEOUT} s; send it in another request.")
            found.append(decode(picture if isinstance(picture, bytes) else _decode_base64(picture)))
        except UserError as error:
            found.append(error)
    return found
