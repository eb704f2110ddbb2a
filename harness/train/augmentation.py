"""Changes of training recordings on the fly: speed, noise, loudness, and codecs, each by its declared probability.

Nothing is drawn from a global generator: what becomes of a clip depends on the seed, the place of its window or batch
in the training, and the clip, so that any number of processes and any number of kills give the same batches. The signal
work is soxr's (speed) and libsndfile's (codecs).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from harness.core.manifests import SAMPLE_RATE_HZ
from harness.core.recordings import check_rate
from harness.errors import DataError, first_line
from harness.suite.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus"})
TELEPHONE_HZ = 8000
PEAK = 0.99
"""Louder than this nothing becomes that was not before."""
COLOURS = (0.0, 2.0)
"""Exponents of noise: power falls as frequency to this; 0 is white, 1 pink, 2 brown."""
COMPRESSION = (0.5, 0.95)
"""libsndfile's, from a good podcast's to a bad line's."""
ENCODINGS = {"mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}
EFFECTS = ("speed", "noise", "gain", "codec")
"""In the order of the world: a speaker, a room, a microphone, a line. Each draws random numbers of its own."""


def _ascending(value: list[float]) -> list[float]:
    if len(value) != 2 or value[0] > value[1]:
        raise ValueError(f"expected [smallest, largest], found {value}")
    return value


Probability = Annotated[float, Field(gt=0, le=1, description="Share of the clips that it happens to.")]
Bounds = {"minItems": 2, "maxItems": 2}


class Speed(Spec):
    """Faster or slower, with the pitch, as a tape would be."""

    p: Probability
    range: Annotated[
        list[Annotated[float, Field(ge=0.5, le=2)]], AfterValidator(_ascending), Field(json_schema_extra=Bounds)
    ] = Field(default=[0.9, 1.1], description="[slowest, fastest]; where a window has no room, less slow.")


class Gain(Spec):
    """Louder or quieter, never clipped."""

    p: Probability
    db: Annotated[
        list[Annotated[float, Field(ge=-60, le=60)]], AfterValidator(_ascending), Field(json_schema_extra=Bounds)
    ] = Field(default=[-6.0, 6.0])


class Noise(Spec):
    """Steady noise between white and brown, or recorded noise."""

    p: Probability
    snr_db: Annotated[
        list[Annotated[float, Field(ge=-20, le=100)]], AfterValidator(_ascending), Field(json_schema_extra=Bounds)
    ] = Field(default=[5.0, 30.0], description="Speech over noise.")
    recordings: str | None = Field(
        default=None, min_length=1, description="A folder of recordings of noise; null: it is generated."
    )

    def identity(self) -> dict[str, Any]:
        """A folder counts by its content, which `outside` names, and not by where it lies."""
        return {**super().identity(), "recordings": "folder" if self.recordings else None}


class Codec(Spec):
    """Through a lossy codec and back."""

    p: Probability
    kinds: list[Literal["mp3", "ogg", "opus", "telephone"]] = Field(
        default=["mp3", "ogg", "opus", "telephone"],
        min_length=1,
        description="One of them each time. telephone: 8 kHz, µ-law. opus takes ten times as long as the others.",
    )


class Augmentation(Spec):
    """What happens to training recordings, never to dev or held-out ones."""

    speed: Speed | None = None
    noise: Noise | None = None
    gain: Gain | None = None
    codec: Codec | None = None

    @model_validator(mode="after")
    def _do_something(self) -> Self:
        if not any(getattr(self, effect) for effect in EFFECTS):
            raise ValueError(f"expected at least one of {', '.join(EFFECTS)}; or drop augment")
        return self

    def outside(self) -> list[Path]:
        """The folder of noise."""
        return [Path(self.noise.recordings).expanduser()] if self.noise and self.noise.recordings else []

    @property
    def longest(self) -> float:
        """How many times as long as before a recording can become."""
        return max(1.0, 1 / self.speed.range[0]) if self.speed else 1.0


@dataclass(frozen=True, slots=True)
class Augmenter:
    """An augmentation with its seed and its noises; picklable, for the processes that prepare batches."""

    spec: Augmentation
    seed: int
    noises: tuple[Path, ...] = ()

    def clip(self, samples: np.ndarray, *, place: int, index: int, longest: int | None = None) -> np.ndarray:
        """One recording, changed.

        samples: float32 [num_samples], 16 kHz mono. place: of its window or batch, in the whole training. index: of the
        clip. longest: samples that it may become at most; no fewer than it has.
        """
        import numpy as np

        if not len(samples) or not np.isfinite(samples).all():
            return samples  # what is damaged is for the loss's guard to tell, not for a codec to fail at
        drawn = {effect: np.random.default_rng([self.seed, place, index, turn]) for turn, effect in enumerate(EFFECTS)}
        happens = {
            effect: getattr(self.spec, effect)
            for effect, rng in drawn.items()
            if getattr(self.spec, effect) and rng.random() < getattr(self.spec, effect).p
        }
        if "speed" in happens:
            factor = float(drawn["speed"].uniform(*happens["speed"].range))
            samples = at_speed(samples, factor, longest=longest)
        peak = max(PEAK, float(np.abs(samples).max(initial=0)))
        if "noise" in happens:
            rng = drawn["noise"]
            snr_db = float(rng.uniform(*happens["noise"].snr_db))
            samples = with_noise(samples, self._noise(len(samples), rng=rng), snr_db=snr_db)
        if "gain" in happens:
            samples = samples * 10 ** (float(drawn["gain"].uniform(*happens["gain"].db)) / 20)
        loudest = float(np.abs(samples).max(initial=0))
        if loudest > peak:
            samples = samples * (peak / loudest)
        if "codec" in happens:
            rng = drawn["codec"]
            samples = through_codec(samples, str(rng.choice(happens["codec"].kinds)), level=rng.uniform(*COMPRESSION))
        return np.asarray(samples, dtype=np.float32)

    def window(
        self, pieces: Sequence[np.ndarray], *, place: int, indices: Sequence[int], grid: int, longest: int
    ) -> list[np.ndarray]:
        """The recordings of a window, changed; all together no longer than `longest` samples.

        pieces: each of a whole number of `grid` samples, and so they stay. What one leaves of the window, those after
        it may take: a slow one that has no room is less slow.
        """
        import numpy as np

        changed: list[np.ndarray] = []
        spare = longest - sum(map(len, pieces))
        for piece, index in zip(pieces, indices, strict=True):
            room = (len(piece) + max(0, spare)) // grid * grid
            other = self.clip(piece, place=place, index=index, longest=room)
            changed.append(np.pad(other, (0, -len(other) % grid)))
            spare += len(piece) - len(changed[-1])
        return changed

    def _noise(self, num_samples: int, *, rng: np.random.Generator) -> np.ndarray:
        if not self.noises:
            return coloured_noise(num_samples, exponent=float(rng.uniform(*COLOURS)), rng=rng)
        return recorded_noise(self.noises[int(rng.integers(len(self.noises)))], num_samples, rng=rng)


def augmenter(spec: Augmentation | None, *, seed: int) -> Augmenter | None:
    """What augments a training, if anything. Raises DataError if the folder of noise has none."""
    if spec is None:
        return None
    noises: list[Path] = []
    for folder in spec.outside():
        noises = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not noises:
            found = "has no recordings" if folder.is_dir() else "is no folder"
            raise DataError(
                f"augment.noise.recordings: {folder} {found} ({', '.join(sorted(SUFFIXES))}); "
                "name one that has, or drop it: noise is then generated"
            )
    return Augmenter(spec, seed, tuple(noises))


def at_speed(samples: np.ndarray, factor: float, *, longest: int | None = None) -> np.ndarray:
    """Played `factor` times as fast; not slower than `longest` samples allow."""
    import soxr

    if longest is not None:
        factor = max(factor, len(samples) / longest)
    if factor == 1 or not len(samples):
        return samples
    changed: np.ndarray = soxr.resample(samples, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)
    return changed[:longest]


def coloured_noise(num_samples: int, *, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """float32 [num_samples] of noise whose power falls as frequency to the exponent, without a constant part."""
    import numpy as np

    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequencies = np.fft.rfftfreq(num_samples)
    spectrum[0] = 0
    spectrum[1:] *= frequencies[1:] ** (-exponent / 2)
    return np.fft.irfft(spectrum, num_samples).astype(np.float32)


def recorded_noise(path: Path, num_samples: int, *, rng: np.random.Generator) -> np.ndarray:
    """float32 [num_samples] out of a recording, from a random place on; a shorter one is repeated.

    Raises DataError if it cannot be read.
    """
    import numpy as np
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as file:
            check_rate(file)
            wanted = round(num_samples * file.samplerate / SAMPLE_RATE_HZ) + 1
            file.seek(int(rng.integers(max(1, file.frames - wanted + 1))))
            found = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
            noise = soxr.resample(found, file.samplerate, SAMPLE_RATE_HZ)
    except (OSError, soundfile.SoundFileError, ValueError, TypeError) as error:
        raise DataError(f"{path}: this noise cannot be read: {first_line(error)}; remove it, or mend it") from error
    return np.resize(noise, num_samples) if len(noise) else np.zeros(num_samples, np.float32)


def with_noise(samples: np.ndarray, noise: np.ndarray, *, snr_db: float) -> np.ndarray:
    """Both together, the noise so loud that speech is `snr_db` over it; silence stays silent."""
    import numpy as np

    speech_rms, noise_rms = (float(np.sqrt(np.mean(np.square(item, dtype=np.float64)))) for item in (samples, noise))
    if not speech_rms or not noise_rms:
        return samples
    loud: np.ndarray = samples + noise * (speech_rms / noise_rms * 10 ** (-snr_db / 20))
    return loud


def through_codec(samples: np.ndarray, kind: str, *, level: float) -> np.ndarray:
    """Encoded and decoded; of the same length, sample for sample at the same place.

    kind: mp3, ogg, opus or telephone. level: libsndfile's compression level, 0 to 1; a telephone has none.
    """
    import numpy as np
    import soundfile
    import soxr

    if not len(samples):
        return samples
    buffer = io.BytesIO()
    if kind == "telephone":
        narrow = soxr.resample(samples, SAMPLE_RATE_HZ, TELEPHONE_HZ)
        soundfile.write(buffer, narrow, TELEPHONE_HZ, format="WAV", subtype="ULAW")
    else:
        container, encoding = ENCODINGS[kind]
        soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format=container, subtype=encoding, compression_level=level)
    buffer.seek(0)
    decoded, rate_hz = soundfile.read(buffer, dtype="float32")
    if rate_hz != SAMPLE_RATE_HZ:
        decoded = soxr.resample(decoded, rate_hz, SAMPLE_RATE_HZ)
    found: np.ndarray = np.pad(decoded[: len(samples)], (0, max(0, len(samples) - len(decoded))))
    return found
