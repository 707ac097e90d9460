"""What the speech pipeline computes around Silero's network: frames in front of it, stretches of speech behind it.

Functions of arrays, named in dlproxy.toml; run.py cuts its live streams by them, too. Not aware of: dlproxy.
"""

import numpy as np

RATE = 16_000  # samples a second
FRAME, BEFORE = 512, 64  # samples that the network judges at a time, and what it sees of those before
BEGINS, ENDS = 0.5, 0.35  # speech begins with odds from here on, and ends once they are below for a while
PAUSE_S, SHORTEST_S, MARGIN_S = 0.1, 0.25, 0.03


def frames(samples):
    """A whole recording, [1, samples], for the network: overlapping frames, and a state that has heard nothing."""
    (samples,) = samples
    count = -(-len(samples) // FRAME)
    padded = np.pad(samples, (BEFORE, count * FRAME - len(samples)))
    parts = np.lib.stride_tricks.sliding_window_view(padded, BEFORE + FRAME)[::FRAME]
    nothing = np.zeros((1, 1, 128), np.float32)
    return {"input": np.ascontiguousarray(parts, np.float32), "h": nothing, "c": nothing}


def segments(odds):
    """Where somebody speaks, in seconds: float32 [segments, 2]. `odds`: of speech, for each frame."""
    found, begin, last = [], None, 0.0
    for number, odd in enumerate(odds):
        now = number * FRAME / RATE
        if odd >= BEGINS and begin is None:
            begin = now
        if odd >= ENDS:
            last = now + FRAME / RATE
        elif begin is not None and now - last >= PAUSE_S:
            found.append((begin, last))
            begin = None
    if begin is not None:
        found.append((begin, last))
    kept = [(max(0.0, begin - MARGIN_S), end + MARGIN_S) for begin, end in found if end - begin >= SHORTEST_S]
    return np.array(kept, np.float32).reshape(-1, 2)


segments.outputs = {"segments": "FP32[-1,2]"}
