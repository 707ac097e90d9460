"""Audio: decoded whole or not at all, at another rate without aliases, as log-mel features by the formula."""

import io
from math import ceil, log, log10
from struct import pack
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import resample_poly

from dlproxy.steps.mel import filters
from dlproxy.steps.resampling import resampled
from tests.steps.running import made, run, texts

RATE = 16_000
NOISE = np.random.default_rng(1).uniform(-0.9, 0.9, (4000, 2))


def _file(samples: NDArray[Any], rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_16", 1 / 32768),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 1e-6),
        ("WAV", "DOUBLE", 1e-6),
        ("FLAC", "PCM_16", 1 / 32768),
        ("AIFF", "PCM_16", 1 / 32768),
    ],
)
def test_samples_of_every_format(kind: str, subtype: str, error: float) -> None:
    found = run(made("audio.decode"), audio=texts(_file(NOISE, kind=kind, subtype=subtype)))
    np.testing.assert_allclose(found["samples"][0], NOISE.mean(axis=1), atol=error)
    assert found["rate"].tolist() == [RATE]


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_lossy_formats_in_outline(kind: str, subtype: str) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    found = run(made("audio.decode"), audio=np.frombuffer(_file(tone, kind=kind, subtype=subtype), np.uint8))["samples"][0]
    assert abs(len(found) - len(tone)) < 3000
    spectrum = np.abs(np.fft.rfft(found[4000:20_000]))
    assert spectrum.argmax() == 440
    assert spectrum[440] == pytest.approx(4000, rel=0.1)


def test_the_rate_that_is_wanted() -> None:
    data = _file(NOISE, 8000)
    assert run(made("audio.decode"), audio=data)["samples"].shape == (1, 8000)
    found = run(made("audio.decode", rate=0), audio=data)
    assert (found["samples"].shape, found["rate"].tolist()) == ((1, 4000), [8000])
    assert run(made("audio.decode"), audio=_file(NOISE[:0], 8000))["samples"].shape == (1, 0)


def _without_length(wav: bytes) -> bytes:
    """As programs write it into a pipe."""
    at = wav.index(b"data") + 4
    return wav[:4] + b"\xff" * 4 + wav[8:at] + b"\xff" * 4 + wav[at + 4 :]


def test_wav_files_that_do_not_know_their_length() -> None:
    assert run(made("audio.decode"), audio=_without_length(_file(NOISE)))["samples"].shape == (1, 4000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes that are no audio of a known format"),
        (_file(NOISE, kind="AU"), "no audio of a known format"),
        (b"RIFF", "not readable"),
        (b"no audio at all", "15 bytes that are no audio of a known format"),
        (b"RIFF" + pack("<I", 4) + b"WAVE", "not readable"),
        (_file(NOISE)[:-100], "the audio breaks off: it has 15944 bytes, and its header says 16044"),
        (_file(NOISE, kind="FLAC")[:-5000], "the audio breaks off|not readable"),
        (_file(np.zeros((600_000, 2)), kind="FLAC"), "more than 500000 samples in 2 channels; see max_samples"),
        (_file(NOISE, 1000 * RATE + 1), "a filter would be too large"),
        (_file(NOISE, 1000 * RATE), "1000 to 1, for which a filter would be too large"),
        (_file(NOISE, 1), "4000 samples at 1 Hz are more than max_samples at 16000 Hz"),
    ],
)
def test_what_is_no_audio(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("audio.decode", max_samples=1_000_000)(audio=data)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_mutated_files_are_refused_or_decoded(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from([_file(NOISE[:500], kind=kind) for kind in ("WAV", "FLAC", "OGG")])))
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, min(len(file), 200) - 1), st.integers(0, 255)), max_size=4)):
        file[place] = byte
    try:
        assert made("audio.decode", rate=0)(audio=bytes(file))["samples"].ndim == 2
    except ValueError as error:
        refused = str(error)
        assert "audio" in refused


RATES = st.sampled_from([8000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])


@given(RATES, RATES, st.floats(0.02, 0.84))
@settings(max_examples=40, deadline=None)
def test_a_tone_is_the_same_tone(rate: int, wanted: int, share: float) -> None:
    hz = share * min(rate, wanted) / 2
    found = resampled(np.sin(2 * np.pi * hz * np.arange(rate // 4) / rate).astype(np.float32), rate, wanted)
    assert len(found) == ceil(rate // 4 * wanted / rate)
    expected = np.sin(2 * np.pi * hz * np.arange(len(found)) / wanted)
    edge = len(found) // 8
    assert np.abs(found - expected)[edge:-edge].max() < 3e-4


def test_what_would_alias_is_gone() -> None:
    tones = np.sin(2 * np.pi * np.array([8001, 9000, 15_000, 22_000])[:, None] * np.arange(22_050) / 44_100).astype(np.float32)
    for tone in tones:
        assert np.abs(resampled(tone, 44_100, RATE)[800:-800]).max() < 2e-4


def test_beside_another_resampler() -> None:
    smooth = np.convolve(NOISE[:, 0], np.hanning(64) / 32)[:4000].astype(np.float32)
    ours = resampled(smooth, 48_000, 32_000)
    np.testing.assert_allclose(ours[100:-100], resample_poly(smooth, 2, 3)[100:-100], atol=2e-3)


def _log_mel(samples: Any, options: dict[str, Any]) -> Any:
    """By the definitions, one number after another, with a plain discrete Fourier transform."""
    n_fft, hop, mels, window = (options[name] for name in ("n_fft", "hop", "mels", "window"))
    mirrored = np.concatenate([samples[1 : n_fft // 2 + 1][::-1], samples, samples[-n_fft // 2 - 1 : -1][::-1]])
    hann = np.zeros(n_fft)
    hann[(n_fft - window) // 2 :][:window] = [np.sin(np.pi * number / window) ** 2 for number in range(window)]
    transform = np.exp(-2j * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(n_fft)) / n_fft)
    weights = filters(RATE, n_fft, mels, 0, RATE / 2, htk=options["scale"] == "htk", equal_area=options["equal_area"])
    count = 1 + (len(mirrored) - n_fft) // hop
    power = [np.abs(transform @ (mirrored[at * hop : at * hop + n_fft] * hann)) ** 2 @ weights for at in range(count)]
    return np.array(power).T


def test_features_are_whispers() -> None:
    samples = NOISE[:1000].mean(axis=1)
    levels = np.log10(
        np.maximum(
            _log_mel(samples, {"n_fft": 400, "hop": 160, "mels": 80, "window": 400, "scale": "slaney", "equal_area": True}),
            1e-10,
        )
    )
    expected = (np.maximum(levels[:, :-1], levels[:, :-1].max() - 8) + 4) / 4
    found = run(made("audio.log_mel"), samples=samples)["features"]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    step = made("audio.log_mel", seconds=30)
    filled = run(step, samples=np.stack([samples, samples]))["features"]
    assert step.outputs == {"features": "FP32[-1,80,3000]"}
    np.testing.assert_array_equal(filled[0], filled[1])
    np.testing.assert_allclose(filled[0, :, :4], expected[:, :4], atol=1e-4)


@pytest.mark.parametrize("kind", ["ln", "log10", "db"])
def test_features_are_htks(kind: str) -> None:
    options: dict[str, Any] = {"n_fft": 512, "hop": 128, "mels": 40, "window": 400, "scale": "htk", "equal_area": False}
    samples = NOISE[:2000, 0]
    power = _log_mel(samples, options).T
    expected = {"ln": np.log(power), "log10": np.log10(power), "db": 10 * np.log10(power)}[kind]
    found = run(made("audio.log_mel", log=kind, frames_first=True, **options), samples=samples)["features"]
    np.testing.assert_allclose(found[0], expected, atol=2e-3)


@pytest.mark.parametrize("options", [{}, {"centre": False}, {"log": "ln"}, {"n_fft": 401, "frames_first": True}, {"hop": 800}])
@pytest.mark.parametrize("seconds", [0.03, 0.05, 0.5])
def test_the_number_of_frames_is_known(options: dict[str, Any], seconds: float) -> None:
    step = made("audio.log_mel", seconds=seconds, **options)
    assert step.outputs["features"].count("-1") == 1
    run(step, samples=NOISE[:, 0])


def test_many_frames_are_made_in_parts() -> None:
    step, samples = made("audio.log_mel", centre=False, log="ln"), np.tile(NOISE[:, 0], 60)
    features = run(step, samples=samples)["features"]
    assert features.shape == (1, 80, 1 + (240_000 - 400) // 160)
    np.testing.assert_allclose(features[0, :, 1225], step(samples=samples[1225 * 160 :][:400])["features"][0, :, 0], rtol=1e-5)


@pytest.mark.parametrize("htk", [False, True])
def test_filters_by_their_definition(htk: bool) -> None:
    def mel(hz: float) -> float:
        if htk:
            return 2595 * log10(1 + hz / 700)
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * log(hz / 1000) / log(6.4)

    weights = filters(RATE, 400, 20, 20.0, 7610.0, htk=htk, equal_area=False)
    step = (mel(7610) - mel(20)) / 21
    for band in range(20):
        middle = mel(20) + (band + 1) * step
        inside = [abs(mel(number * 40.0) - middle) < step for number in range(201)]
        assert (weights[:, band] > 0).tolist() == inside


def test_filters_as_whisper_has_them() -> None:
    """The first numbers of its published table."""
    weights = filters(RATE, 400, 80, 0.0, 8000.0, htk=False, equal_area=True)
    assert weights[1, 0] == pytest.approx(0.02486259, abs=1e-7)
    assert weights[0].max() == 0.0


@pytest.mark.parametrize(
    ("options", "samples", "message"),
    [
        ({}, np.zeros(0), r"samples is \[1, 0\], which is not one frame of 400"),
        ({"centre": False}, np.zeros(399), r"samples is \[1, 399\], which is not one frame of 400; see seconds"),
        ({}, np.zeros((1, 2, 3)), r"samples is \[1, 2, 3\], and the step takes \[n\] or \[rows, n\]"),
        ({}, texts("a"), "samples holds object"),
    ],
)
def test_samples_that_do_not_fit(options: dict[str, Any], samples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("audio.log_mel", **options)(samples=samples)
