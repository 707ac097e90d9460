"""What many teams have: FastAPI and ONNX Runtime with their defaults, an endpoint on its threads. No word of dlproxy.

Started by servers.py as `uvicorn app:app`; CASESTUDY_MODEL names the file. Not aware of: load, priorities.
"""

import io
import os
from typing import Annotated

import numpy as np
import onnxruntime
from fastapi import Body, FastAPI, HTTPException
from PIL import Image, UnidentifiedImageError

SIZE = (64, 64)

app = FastAPI()
session = onnxruntime.InferenceSession(os.environ["CASESTUDY_MODEL"])


@app.post("/classify")  # type: ignore[untyped-decorator] # FastAPI is not read
def classify(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, int]:
    """The category of a picture, by its number."""
    try:
        picture = Image.open(io.BytesIO(image)).convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError):
        raise HTTPException(400, "this is no picture") from None
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255.0
    (probabilities,) = session.run(["probabilities"], {"image": pixels})
    return {"category": int(probabilities.argmax())}
