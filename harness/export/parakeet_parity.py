"""Whether a Parakeet's export is the model: the same features, outputs and texts as NeMo gives, on made-up sounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.manifests import SAMPLE_RATE_HZ
from harness.core.nemo_file import quiet, transcribe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import onnxruntime
    import torch

    from harness.export.nemo_model import Shape

NUM_PROBES = 3
PROBE_S = 3.0
SYLLABLE_S = 0.2
NUM_TARGETS = 8
SEED = 17


@dataclass(frozen=True, slots=True)
class Probe:
    """A sound, and what NeMo makes of it."""

    samples: np.ndarray
    features: np.ndarray
    """float32 [1, num_mels, frames]."""
    encoded: np.ndarray
    """The encoder's outputs, float32 [1, width, frames]; for CTC log-probabilities [1, frames, tokens]."""
    joint: np.ndarray | None
    """Scores of tokens and durations for made-up tokens, float32 [1, frames, num_targets, outputs]; not for CTC."""
    text: str


def expect(model: Any, shape: Shape) -> list[Probe]:
    """Run NeMo. model: restored, decoding greedily."""
    with quiet():
        return [_probe(model, shape, samples) for samples in sounds()]


def sounds() -> Iterator[np.ndarray]:
    """Syllables of a voice-like buzz with gliding pitch and formants, noise and pauses: float32, 3 s each.

    Nobody's speech: an export sees no dataset.
    """
    import numpy as np

    random = np.random.default_rng(SEED)
    length = int(SYLLABLE_S * SAMPLE_RATE_HZ)
    time_s = np.arange(length) / SAMPLE_RATE_HZ
    for _ in range(NUM_PROBES):
        syllables = []
        for _ in range(int(PROBE_S / SYLLABLE_S)):
            pitch_hz = random.uniform(90, 220) + random.uniform(-200, 200) * time_s
            phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
            harmonics = np.arange(1, 24)[:, None]
            formants_hz = random.uniform((250, 900, 2200), (800, 2200, 3400))[:, None, None]
            gains = np.exp(-(((harmonics * pitch_hz - formants_hz) / 250) ** 2)).sum(axis=0)
            buzz = (gains * np.sin(harmonics * phase)).sum(axis=0)
            noise = random.normal(0, random.choice([0.02, 0.6]), length)
            envelope = np.sin(np.pi * np.arange(length) / length) * random.choice([0.0, 0.5, 1.0], p=[0.15, 0.35, 0.5])
            syllables.append((buzz * random.choice([0.0, 1.0], p=[0.2, 0.8]) + noise) * envelope)
        samples = np.concatenate(syllables)
        yield (0.3 * samples / np.abs(samples).max()).astype(np.float32)


def compare(folder: Path, shape: Shape, probes: list[Probe], *, quantization: str | None) -> dict[str, Any]:
    """By how much the export in `folder` differs from what NeMo gave.

    max_feature_difference: of features, which have unit variance. max_output_difference: of encoder and joint, relative
    to the largest output. encoder_error: the norm of the encoder's error relative to its outputs'. The graphs are given
    NeMo's features, so that each figure is of one part.
    """
    import numpy as np
    import onnx_asr

    session = _sessions(folder, quantization)
    preprocessor = session(f"nemo{shape.num_mels}.onnx", plain=True)
    recogniser = onnx_asr.load_model(
        shape.model_type, folder, quantization=quantization, providers=["CPUExecutionProvider"]
    )
    encoder = session("model.onnx" if shape.is_ctc else "encoder-model.onnx")
    joint = None if shape.is_ctc else session("decoder_joint-model.onnx")
    features, outputs, errors, same = [], [], [], 0
    for probe in probes:
        length = np.array([probe.features.shape[2]])
        waveforms = {"waveforms": probe.samples[None], "waveforms_lens": np.array([len(probe.samples)])}
        found, frames = preprocessor.run(["features", "features_lens"], waveforms)
        features.append(_largest(found[..., : int(frames[0])], probe.features))
        encoded = encoder.run(None, {"audio_signal": probe.features, "length": length})[0]
        outputs.append(_largest(encoded, probe.encoded) / max(1.0, float(np.abs(probe.encoded).max())))
        errors.append(float(np.linalg.norm(encoded - probe.encoded) / np.linalg.norm(probe.encoded)))
        if joint is not None and probe.joint is not None:
            feed = {"encoder_outputs": probe.encoded, **_joint_inputs(shape)}
            scores = joint.run(["outputs"], feed)[0]
            outputs.append(_largest(scores, probe.joint) / max(1.0, float(np.abs(probe.joint).max())))
        same += same_text(recogniser.recognize(probe.samples), probe.text)
    return {
        "max_feature_difference": max(features),
        "max_output_difference": max(outputs),
        "encoder_error": max(errors),
        "num_probes": len(probes),
        "num_same_text": same,
    }


def same_text(found: str, expected: str) -> bool:
    """Whether two runtimes heard the same tokens.

    onnx-asr drops spaces before punctuation and of empty words, and writes the unknown token as `<unk>`, NeMo as `⁇`.
    """
    first, second = ("".join(text.replace("<unk>", "⁇").split()) for text in (found, expected))
    return first == second


def _sessions(folder: Path, quantization: str | None) -> Any:
    import onnxruntime

    def session(name: str, *, plain: bool = False) -> onnxruntime.InferenceSession:
        if quantization and not plain:
            name = name.replace(".onnx", f".{quantization}.onnx")
        return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])

    return session


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; infinite if the shapes differ, NaN if a value is."""
    import numpy as np

    return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")


def _probe(model: Any, shape: Shape, samples: np.ndarray) -> Probe:
    import torch
    from nemo.core.classes.common import typecheck

    with torch.inference_mode(), typecheck.disable_checks():
        signal = torch.from_numpy(samples)[None]
        features, length = model.preprocessor(input_signal=signal, length=torch.tensor([len(samples)]))
        # NeMo may pad features to a multiple; runtimes give what there is.
        features = features[..., : int(length[0])].contiguous()
        joint = None
        if shape.is_ctc:
            encoded = model(processed_signal=features, processed_signal_length=length)[0]
        else:
            encoded, _ = model.encoder(audio_signal=features, length=length)
            joint = _joint_scores(model, encoded, _joint_inputs(shape))
    return Probe(samples, features.numpy(), encoded.numpy(), joint, transcribe(model, samples))


def _joint_scores(model: Any, encoded: torch.Tensor, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """As the exported graph gives them: for exactly these tokens, not normalised."""
    import torch

    state = [torch.from_numpy(inputs[f"input_states_{number}"]) for number in (1, 2)]
    predicted, _ = model.decoder.predict(torch.from_numpy(inputs["targets"]), state=state, add_sos=False)
    normalised, model.joint.log_softmax = model.joint.log_softmax, False
    try:
        scores: np.ndarray = model.joint.joint(encoded.transpose(1, 2), predicted).numpy()
    finally:
        model.joint.log_softmax = normalised
    return scores


def _joint_inputs(shape: Shape) -> dict[str, np.ndarray]:
    """Tokens as they might come, and the state before the first one."""
    import numpy as np

    if shape.prediction is None:
        raise ValueError("CTC has no prediction network")
    layers, width = shape.prediction
    targets = np.random.default_rng(SEED).integers(0, len(shape.vocabulary), (1, NUM_TARGETS), dtype=np.int32)
    state = np.zeros((layers, 1, width), np.float32)
    return {
        "targets": targets,
        "target_length": np.array([NUM_TARGETS], np.int32),
        "input_states_1": state,
        "input_states_2": state,
    }
