"""`:explain` on a real server: what it says of an image is what one finds by asking for it pixel by pixel."""

import numpy as np

from dlproxy import Client
from tests import models
from tests.clients.server import ServerProcess


def test_each_pixel_has_what_the_answer_loses_without_it(server: ServerProcess) -> None:
    with np.load(models.HELDOUT) as heldout:
        image = heldout["images"][0].astype(np.float32)
    (explained,) = server.ask("/v1/models/digits:explain", {"instances": [image.tolist()]})["explanations"]
    rows = np.repeat(image[None], 65, axis=0)
    rows[np.arange(64), 0, np.arange(64) // 8, np.arange(64) % 8] = 0
    with Client(f"http://{server.address}") as client:
        scores = client.infer("digits", rows)["probabilities"].astype(float)
    target = scores[64].argmax()
    assert (explained["output"], explained["target"], explained["part"]) == ("probabilities", target, [1, 1, 1])
    assert np.isclose(explained["base"], scores[64, target], atol=1e-6)
    assert np.allclose(explained["attributions"], (scores[64, target] - scores[:64, target]).reshape(1, 8, 8), atol=1e-5)
