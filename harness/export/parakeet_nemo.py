"""Parakeet as the `.nemo` file that NeMo serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.core.artifact import Resources
from harness.core.files import link_or_copy
from harness.export.nemo_model import MODEL_FILE, load
from harness.suite.spec import ExportSpec

if TYPE_CHECKING:
    from harness.core.artifact import Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True)


class Spec(ExportSpec):
    """The `.nemo` file itself."""

    kind: Literal["parakeet_nemo"] = "parakeet_nemo"
    accepts: ClassVar[tuple[str, ...]] = ("parakeet",)
    is_checkpoint: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "nemo"


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Place `inputs["model"]`'s `model/model.nemo` as `model.nemo`, once it has been restored.

    meta: files, size_bytes, model_class, num_parameters, vocab_size, num_mels.
    Raises DataError for a file that is damaged or brings code: servers of the past would run it.
    """
    del spec
    source = inputs["model"][0]
    work.progress(0, 1, "restoring the model")
    model = load(source)
    target = work.path / MODEL_FILE
    target.unlink(missing_ok=True)
    link_or_copy(source.path / "model" / MODEL_FILE, target)
    work.progress(1, 1, "done")
    decoder = getattr(model, "joint", model.decoder)
    return {
        "files": [MODEL_FILE],
        "size_bytes": target.stat().st_size,
        "model_class": type(model).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": len(decoder.vocabulary),
        "num_mels": int(model.cfg.preprocessor.features),
    }
