"""Upload pictures to the shop and see what it takes them for: python examples/promotion/run.py

Starts `dlproxy serve` with dlproxy.toml, sends twelve pictures that no model was trained on, and ends it.
"""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from dlproxy import Client, InferenceError
from dlproxy.lab.casestudy.shop.catalogue import CATEGORIES, Catalogue

HERE = Path(__file__).parent
PORT = 8094
UPLOADS = 12


@contextmanager
def served():
    """A client of a server that ends with the block."""
    command = [sys.executable, "-m", "dlproxy", "serve", "--config", HERE / "dlproxy.toml", "--quiet"]
    server = subprocess.Popen([*command, "--http-port", str(PORT), "--control-port", "0", "--grpc", "off"])
    try:
        with Client(f"http://127.0.0.1:{PORT}") as client:
            while not client.ready():
                if server.poll() is not None:
                    sys.exit("dlproxy did not start; it has said why above")
                time.sleep(0.1)
            yield client
    finally:
        server.terminate()
        server.wait()


def main():
    shop = Catalogue.packaged()
    right = 0
    with served() as client:
        for upload in shop.uploads(UPLOADS, seed=7, held_out=True):
            began = time.perf_counter()
            try:
                found = int(client.infer("upload", {"jpeg": [upload.jpeg]})["category"][0])
            except InferenceError as error:  # on a busy machine there may be no time for it within the objective
                print(f"refused: {error}")
                continue
            took_ms = (time.perf_counter() - began) * 1e3
            right += found == upload.category
            name = shop.products[upload.product].name
            print(f"{name:24} {CATEGORIES[upload.category]:12} taken for {CATEGORIES[found]:12} {took_ms:6.1f} ms")
    print(f"{right} of {UPLOADS} are right")


if __name__ == "__main__":
    main()
