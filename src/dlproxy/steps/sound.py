"""The step that makes samples of encoded audio.

Named in the table of steps; needs soundfile. Not aware of: models.
"""

import io
from struct import unpack_from
from typing import Annotated, Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.config.values import ConfigError
from dlproxy.steps.options import checked
from dlproxy.steps.resampling import resampled
from dlproxy.steps.values import Floats, element_of

try:
    import soundfile
except (ImportError, OSError):  # OSError: it finds no libsndfile
    raise ConfigError("audio.decode needs soundfile: pip install 'dlproxy[steps]'", "steps") from None

# Of libsndfile's many formats, those that clients send; MP3 begins with a tag or a frame, whose layer and version vary.
_BEGINNINGS = (
    b"RIFF",
    b"RIFX",
    b"RF64",
    b"fLaC",
    b"OggS",
    b"FORM",
    b"ID3",
    *(bytes([0xFF, byte]) for byte in range(0xE0, 0xFF)),
)
_BLOCK = 1 << 16  # frames that are read at once, whatever the header says
_UNKNOWN = 0x7FFF0000  # from here on, a length is what writers put down who did not know it yet


class Decode:
    """Samples from -1 to 1 of a WAV, FLAC, MP3, Ogg (Vorbis, Opus) or AIFF file: the mean of its channels, at one rate."""

    class Options(Struct, frozen=True):
        rate: Annotated[int, knob("samples of a second to give; 0: as many as there are", ge=0, le=384_000)] = 16_000
        max_samples: Annotated[int, knob("of all channels, as sent; longer audio is refused before it takes memory", ge=1)] = (
            1 << 26
        )

    outputs = {"samples": "FP32[1,-1]", "rate": "INT64[1]"}

    def __init__(self, **options: Any) -> None:
        self._options = checked(self.Options, options)

    def __call__(self, audio: Any) -> dict[str, NDArray[Any]]:
        """audio: BYTES of one element, or the file's bytes as UINT8."""
        data = element_of("audio", audio)
        if not data.startswith(_BEGINNINGS):
            raise ValueError(f"audio: {len(data)} bytes that are no audio of a known format")
        _check_whole(data)
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                samples, rate = self._mono(file), int(file.samplerate)
        except soundfile.SoundFileError as error:
            raise ValueError(f"audio: {len(data)} bytes that are not readable: {error}") from None
        wanted = self._options.rate or rate
        if len(samples) * wanted > self._options.max_samples * rate:
            raise ValueError(f"{len(samples)} samples at {rate} Hz are more than max_samples at {wanted} Hz")
        return {"samples": resampled(samples, rate, wanted)[None], "rate": np.array([wanted], np.int64)}

    def _mono(self, file: Any) -> Floats:
        most = self._options.max_samples // file.channels
        parts: list[Floats] = []
        left = most
        while left >= 0 and len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
            parts.append(block.mean(axis=1, dtype=np.float32))
            left -= len(block)
        if left < 0:
            raise ValueError(f"the audio has more than {most} samples in {file.channels} channels; see max_samples")
        if most - left < file.frames < _UNKNOWN and file.format != "MP3":  # whose length may be an estimate
            raise ValueError(f"the audio breaks off after {most - left} of {file.frames} samples")
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _check_whole(data: bytes) -> None:
    """WAV files that break off, of which libsndfile reads what there is."""
    if data[:4] == b"RIFF" and len(data) >= 8:
        (size,) = unpack_from("<I", data, 4)
        if len(data) + 1 < size + 8 and size < _UNKNOWN:  # some leave out the last filling byte
            raise ValueError(f"the audio breaks off: it has {len(data)} bytes, and its header says {size + 8}")
