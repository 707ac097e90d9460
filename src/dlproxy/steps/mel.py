"""The step that makes log-mel spectrograms of samples.

Named in the table of steps. Not aware of: models, files.
"""

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Struct
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.config.values import ConfigError
from dlproxy.steps.options import checked
from dlproxy.steps.values import Floats, numbers_of, shape

_BLOCK = 1 << 10  # frames that are transformed at once
_BREAK_HZ = 1000.0  # where Slaney's scale changes from linear to logarithmic
_PER_MEL = 200.0 / 3.0
_LOG_STEP = np.log(6.4) / 27.0


class LogMel:
    """The logarithm of the power in mel bands over time; the defaults are Whisper's, as are its 30 s with seconds = 30."""

    class Options(Struct, frozen=True):
        rate: Annotated[int, knob("samples of a second that are given", ge=1000, le=384_000)] = 16_000
        mels: Annotated[int, knob("bands", ge=1, le=512)] = 80
        n_fft: Annotated[int, knob("samples of a frame", ge=16, le=1 << 16)] = 400
        hop: Annotated[int, knob("samples from a frame to the next", ge=1, le=1 << 16)] = 160
        window: Annotated[int, knob("samples of the Hann window in the middle of a frame; 0: all", ge=0, le=1 << 16)] = 0
        low: Annotated[float, knob("where the first band begins, in Hz", ge=0)] = 0.0
        high: Annotated[float, knob("where the last band ends, in Hz; 0: at half the rate", ge=0)] = 0.0
        scale: Annotated[
            Literal["slaney", "htk"], knob("of mels: Slaney's, linear up to 1 kHz, as librosa has it, or HTK's, as torchaudio")
        ] = "slaney"
        equal_area: Annotated[
            bool, knob("every band's weights have the same sum over Hz (norm = slaney elsewhere), or all end at 1")
        ] = True
        log: Annotated[
            Literal["whisper", "ln", "log10", "db"],
            knob(
                "whisper: log10 with 8 below the highest as the least, then (x + 4) / 4, without the last frame; db: 10 log10"
            ),
        ] = "whisper"
        least: Annotated[float, knob("power below it counts as this", gt=0)] = 1e-10
        centre: Annotated[bool, knob("frames have their middle at multiples of hop, the ends mirrored; or begin there")] = True
        seconds: Annotated[float, knob("audio is cut or filled up with silence to this length; 0: as it is", ge=0, le=3600)] = (
            0.0
        )
        frames_first: Annotated[bool, knob("give [rows, frames, mels] in place of [rows, mels, frames]")] = False

    outputs = {"features": "FP32[-1,-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = given = checked(self.Options, options)
        high, width = given.high or given.rate / 2, given.window or given.n_fft
        if not given.low < high <= given.rate / 2:
            raise ConfigError(f"options.high: it is above low, and at most half the rate, {given.rate / 2} Hz", "steps")
        if width > given.n_fft:
            raise ConfigError(f"options.window: at most n_fft, {given.n_fft}", "steps")
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(width) / width)
        before = (given.n_fft - width) // 2
        self._window = np.pad(window, (before, given.n_fft - width - before)).astype(np.float32)
        weights = filters(
            given.rate, given.n_fft, given.mels, given.low, high, htk=given.scale == "htk", equal_area=given.equal_area
        )
        self._weights = weights.astype(np.float32)
        frames = -1
        if given.seconds:
            beyond = self._length() + (given.n_fft // 2 * 2 if given.centre else 0) - given.n_fft
            frames = beyond // given.hop + 1 - (given.log == "whisper" and beyond >= given.hop)
        sizes = (frames, given.mels) if given.frames_first else (given.mels, frames)
        self.outputs = {"features": f"FP32[-1,{sizes[0]},{sizes[1]}]"}

    def __call__(self, samples: Any) -> dict[str, NDArray[Any]]:
        """samples: numbers [n], or several of one length [rows, n]."""
        given = numbers_of("samples", samples)
        if given.ndim > 2:
            raise ValueError(f"samples is {shape(given)}, and the step takes [n] or [rows, n]")
        padded = self._padded(np.atleast_2d(given))
        frames = sliding_window_view(padded, self._options.n_fft, axis=1)[:, :: self._options.hop]
        power = np.empty((*frames.shape[:2], self._options.mels), np.float32)
        for row in range(len(frames)):
            for at in range(0, frames.shape[1], _BLOCK):
                spectrum = np.fft.rfft(frames[row, at : at + _BLOCK] * self._window)
                power[row, at : at + _BLOCK] = (spectrum.real**2 + spectrum.imag**2) @ self._weights
        features = self._logarithm(power)
        return {"features": features if self._options.frames_first else np.ascontiguousarray(features.transpose(0, 2, 1))}

    def _length(self) -> int:
        return round(self._options.seconds * self._options.rate)

    def _padded(self, samples: Floats) -> Floats:
        if self._options.seconds:
            length = self._length()
            samples = np.pad(samples[:, :length], ((0, 0), (0, max(length - samples.shape[1], 0))))
        half = self._options.n_fft // 2 if self._options.centre else 0
        if not samples.size or samples.shape[1] + 2 * half < self._options.n_fft:
            raise ValueError(f"samples is {shape(samples)}, which is not one frame of {self._options.n_fft}; see seconds")
        return np.pad(samples, ((0, 0), (half, half)), mode="reflect")

    def _logarithm(self, power: Floats) -> Floats:
        """[rows, frames, mels]."""
        power = np.maximum(power, np.float32(self._options.least))
        if self._options.log == "ln":
            return np.log(power)
        levels: Floats = np.log10(power)
        if self._options.log == "whisper":
            levels = levels[:, : max(levels.shape[1] - 1, 1)]
            levels = (np.maximum(levels, levels.max(axis=(1, 2), keepdims=True) - 8) + 4) / 4
        return levels * 10 if self._options.log == "db" else levels


def filters(rate: int, n_fft: int, mels: int, low: float, high: float, *, htk: bool, equal_area: bool) -> NDArray[np.float64]:
    """[n_fft // 2 + 1, mels]: triangles between neighbours' middles, which are evenly far apart in mels.

    Of HTK: 2595 log10(1 + f / 700) (The HTK Book, 5.4); else Slaney's (Auditory Toolbox, 1998): 3 mels for each 200 Hz up to
    1 kHz, then 27 for each factor of 6.4.
    """
    edges = _hz(np.linspace(_mel(low, htk), _mel(high, htk), mels + 2), htk)
    bins = np.fft.rfftfreq(n_fft, 1 / rate)[:, None]
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    triangles = np.clip(np.minimum(rising, falling), 0.0, None)
    return triangles * 2.0 / (edges[2:] - edges[:-2]) if equal_area else triangles


def _mel(hz: float, htk: bool) -> float:
    if htk:
        return float(2595.0 * np.log10(1.0 + hz / 700.0))
    return hz / _PER_MEL if hz < _BREAK_HZ else float(_BREAK_HZ / _PER_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _hz(mels: NDArray[np.float64], htk: bool) -> NDArray[np.float64]:
    if htk:
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    above = mels - _BREAK_HZ / _PER_MEL
    return np.where(above < 0.0, mels * _PER_MEL, _BREAK_HZ * np.exp(np.maximum(above, 0.0) * _LOG_STEP))
