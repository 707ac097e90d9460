"""What is sent to each kind of server, and what is read of its answers."""

import numpy as np
import pytest

from dlproxy.lab.casestudy import servers
from dlproxy.lab.casestudy.replay import Door, Item, picture_alone

ITEM = Item(b"\xff\xd8jpeg", 3, "red shoe")


def test_a_picture_is_the_body() -> None:
    door = Door((0, ()), b"POST /classify HTTP/1.1\r\n", int, picture_alone)
    head, _, body = door.request(ITEM, 4).partition(b"\r\n\r\n")
    assert body == ITEM.jpeg
    assert head.split(b"\r\n") == [b"POST /classify HTTP/1.1", b"x-request-priority: 4", b"Content-Length: 6"]


def test_a_text_goes_along_as_json_or_as_a_tensor() -> None:
    more, body = servers._as_json(ITEM)
    assert (more, body) == (b"", b'{"image":"/9hqcGVn","text":"red shoe"}')
    more, body = servers._as_tensors(ITEM)
    lines = dict(line.split(": ") for line in more.decode().splitlines())
    json_bytes = int(lines["Inference-Header-Content-Length"])
    assert body[json_bytes:] == b"\x06\0\0\0\xff\xd8jpeg" + b"\x08\0\0\0red shoe"
    assert more.endswith(b"\r\n")


def test_answers_are_numbers() -> None:
    assert servers._number_of_json(b'{"category":7}') == 7
    assert servers._number_of_bytes(b'{"outputs":[]}' + np.int64(11).tobytes()) == 11


@pytest.mark.parametrize("body", [b"", b"no", b'{"class":1}', b'{"category":"x"}', b"[1]"])
def test_what_is_no_number_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expected|missing|truncated"):
        servers._number_of_json(body)
    if len(body) < 8:
        with pytest.raises(ValueError, match="too short"):
            servers._number_of_bytes(body)
