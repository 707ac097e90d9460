"""Find where people speak in half a minute of a conversation: python examples/speech/run.py

Takes Silero's networks out of an installed package, starts `dlproxy serve`, sends a recording whole and as eight live streams
at once, and ends it. What came out: a table beside what people have heard, and out/speech.png.
"""

import importlib.util
import shutil
import subprocess
import sys
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np

from dlproxy import Client
from steps import FRAME, RATE, frames

matplotlib.use("agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
PORT = 8092
STREAMS = 8
MODELS = {"whole": "silero_vad_16k_sequence.onnx", "live": "silero_vad.onnx"}


def folder_of(package):
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


def take_models(into):
    """Out of the package silero-vad: one network for all frames of a recording, one for a frame at a time."""
    into.mkdir(exist_ok=True)
    for name, file in MODELS.items():
        shutil.copyfile(folder_of("silero_vad") / "data" / file, into / f"{name}.onnx")


def sample():
    """The recording that comes with pyannote.audio: the WAV file, its samples, and where people have heard somebody speak."""
    folder = folder_of("pyannote") / "audio" / "sample"
    with wave.open(str(folder / "sample.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
    fields = [line.split() for line in (folder / "sample.rttm").read_text().splitlines()]
    heard = [(float(start), float(start) + float(length)) for _, _, _, start, length, *_ in fields]
    return (folder / "sample.wav").read_bytes(), samples, heard


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


def listen(client, stream, samples):
    """The odds of speech of each frame, sent one after another: the server keeps what the network remembers of the stream."""
    odds, parts = [], frames(samples[np.newaxis])["input"]
    for number, part in enumerate(parts):
        answer = client.infer(
            "live",
            {"input": part[np.newaxis], "sr": np.array(RATE)},
            sequence_id=stream,
            sequence_start=number == 0,
            sequence_end=number == len(parts) - 1,
        )
        odds.append(answer["output"][0, 0])
    return np.array(odds)


def during(segments, seconds):
    """Whether somebody speaks at each of these times."""
    return np.any([(seconds >= start) & (seconds < end) for start, end in segments], axis=0)


def show(samples, odds, segments, heard, path):
    figure, (sound, speech) = pyplot.subplots(2, 1, figsize=(11, 4), sharex=True, layout="constrained")
    sound.plot(np.arange(len(samples)) / RATE, samples, linewidth=0.3, color="grey")
    sound.set_ylabel("sound")
    speech.plot(np.arange(len(odds)) * FRAME / RATE, odds, linewidth=0.8, color="black")
    for start, end in segments:
        sound.axvspan(start, end, color="tab:green", alpha=0.25)
    for start, end in heard:
        speech.axvspan(start, end, ymax=0.5, color="tab:blue", alpha=0.25)
    speech.set_ylabel("odds; what people heard")
    speech.set_xlabel("seconds")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main():
    take_models(HERE / "models")
    recording, samples, heard = sample()
    with served() as client, ThreadPoolExecutor(STREAMS) as callers:
        answer = client.infer("speech", {"recording": np.array([recording], object)})
        began = time.perf_counter()
        streams = [*callers.map(lambda number: listen(client, number + 1, samples), range(STREAMS))]
        took_s = time.perf_counter() - began
    odds, segments = answer["odds"], answer["segments"]
    print("somebody speaks from, to (seconds)")
    for start, end in segments:
        print(f"  {start:6.2f}  {end:6.2f}")
    seconds = np.arange(0, len(samples) / RATE, 0.01)
    found, known = during(segments, seconds), during(heard, seconds)
    print(f"people heard the same in {(found == known).mean():.1%} of the time")
    print(f"{STREAMS} live streams of {len(samples) / RATE:.0f} s, frame by frame: {took_s:.1f} s")
    print(
        f"their odds and those of the whole recording are at most {max(np.abs(odds - one).max() for one in streams):.0e} apart"
    )
    show(samples, odds, segments, heard, HERE / "out" / "speech.png")
    print(f"picture: {HERE / 'out' / 'speech.png'}")


if __name__ == "__main__":
    main()
