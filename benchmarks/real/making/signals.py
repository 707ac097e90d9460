"""Sound as models take it: speech made of a glottal pulse train through formants, with pauses; a slow noise with spikes as EEG.

No package ships recordings; the models' work does not depend on who speaks.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy.signal import lfilter, stft

from benchmarks.real.making.places import Places
from benchmarks.real.making.texts import Request

Sound = NDArray[np.float32]

RATE = 16_000
CHUNK, CONTEXT = 512, 64  # samples that Silero's model takes at a time, and of those before
CHUNKS = 48
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))  # Peterson and Barney 1952, men
BANDS, STACKED = 80, 5  # log energies of a frame, and frames side by side
FEATURE_REQUESTS = 24
EEG_BANDS, EEG_STEPS = 100, (60, 120, 180, 240, 300)


def speech(seconds: float) -> Sound:
    random = np.random.default_rng(RATE)
    parts: list[NDArray[np.float64]] = []
    while sum(part.size for part in parts) < seconds * RATE:
        length = int(random.uniform(0.1, 0.3) * RATE)
        if random.random() < 0.25:
            parts.append(random.normal(0, 1e-3, length))
            continue
        pulses = np.zeros(length)
        pulses[:: int(RATE / random.uniform(90, 180))] = 1.0
        voice = pulses + random.normal(0, 0.01, length)
        for formant in VOWELS[int(random.integers(len(VOWELS)))]:
            radius, angle = np.exp(-np.pi * 80 / RATE), 2 * np.pi * formant / RATE
            voice = lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], voice)
        parts.append(0.3 * voice / np.abs(voice).max() * np.hanning(length))
    return np.concatenate(parts)[: int(seconds * RATE)].astype(np.float32)


def voice_chunks(places: Places, model: Path) -> Iterator[Request]:
    """Each with the state that the chunk before left."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    sound = speech((CHUNKS + 1) * CHUNK / RATE)
    state = np.zeros((2, 1, 128), np.float32)
    for start in range(CONTEXT, CONTEXT + CHUNKS * CHUNK, CHUNK):
        request = {"input": sound[None, start - CONTEXT : start + CHUNK], "state": state, "sr": np.array(RATE, np.int64)}
        yield request
        state = session.run(["stateN"], request)[0]


def voice_features(places: Places, model: Path) -> Iterator[Request]:
    """Stretches of a tenth of a second to two, each with the caches that the one before left."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    caches = {f"in_cache{number}": np.zeros((1, 128, 19, 1), np.float32) for number in range(4)}
    random = np.random.default_rng(BANDS)
    features = _features(speech(30.0))
    for length in random.integers(10, 201, FEATURE_REQUESTS):
        start = int(random.integers(0, len(features) - length))
        request = {"speech": features[None, start : start + length], **caches}
        yield request
        outputs = session.run([f"out_cache{number}" for number in range(4)], request)
        caches = dict(zip(caches, outputs, strict=True))


def _features(sound: Sound) -> Sound:
    """Log energies in bands that widen with the pitch, five frames side by side, each dimension with mean 0."""
    frequencies, _, spectrum = stft(sound, RATE, nperseg=400, noverlap=240)
    edges = 700 * (np.exp(np.linspace(0, np.log(1 + 8000 / 700), BANDS + 1)) - 1)
    power = np.abs(spectrum) ** 2
    bands = [power[(frequencies >= low) & (frequencies < high + 40)].sum(0) for low, high in pairwise(edges)]
    frames = np.log(np.array(bands).T + 1e-9)
    frames = (frames - frames.mean(0)) / (frames.std(0) + 1e-6)
    stacked = np.concatenate([frames[shift : len(frames) - STACKED + shift] for shift in range(STACKED)], axis=1)
    return stacked.astype(np.float32)


def spectrograms(places: Places, model: Path) -> Iterator[Request]:
    """Of noise whose power falls with the frequency, with bursts of spikes."""
    random = np.random.default_rng(EEG_BANDS)
    for number in range(15):
        steps = EEG_STEPS[number % len(EEG_STEPS)]
        noise = np.cumsum(random.normal(0, 1, 200 * steps))
        noise[:: 200 // (1 + number % 3)] += 30 * (number % 2)
        _, _, spectrum = stft(noise - noise.mean(), 200, nperseg=200, noverlap=100)
        image = np.log(np.abs(spectrum[1 : EEG_BANDS + 1, :steps]) + 1e-6)
        yield {"x": ((image - image.mean()) / image.std())[None].astype(np.float32)}
