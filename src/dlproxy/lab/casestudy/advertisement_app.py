"""As app.py, for advertisements: a picture and a text as JSON. No word of dlproxy.

Started by servers.py as `uvicorn advertisement_app:app`; CASESTUDY_MODEL and CASESTUDY_TOKENIZER name the files.

Not aware of: load, priorities.
"""

import io
import os

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from PIL import Image, UnidentifiedImageError
from pydantic import Base64Bytes, BaseModel
from tokenizers import Tokenizer

SIZE, WORDS = (64, 64), 12

app = FastAPI()
session = onnxruntime.InferenceSession(os.environ["CASESTUDY_MODEL"])
tokenizer = Tokenizer.from_file(os.environ["CASESTUDY_TOKENIZER"])
tokenizer.enable_padding(length=WORDS)
tokenizer.enable_truncation(WORDS)


class Advertisement(BaseModel):  # type: ignore[misc] # pydantic is not read
    """What is sent."""

    image: Base64Bytes
    text: str


@app.post("/judge")  # type: ignore[untyped-decorator] # FastAPI is not read
def judge(advertisement: Advertisement) -> dict[str, int]:
    """The category of what is advertised, by its number."""
    try:
        picture = Image.open(io.BytesIO(advertisement.image)).convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError):
        raise HTTPException(400, "this is no picture") from None
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255.0
    words = np.array([tokenizer.encode(advertisement.text).ids], np.int64)
    (probabilities,) = session.run(["probabilities"], {"image": pixels, "words": words})
    return {"category": int(probabilities.argmax())}
