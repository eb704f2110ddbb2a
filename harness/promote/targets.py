"""Where applications look for models: folder, names, and which exports fit. Sources: docs/mimir.md."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import MissingError, SuiteError

if TYPE_CHECKING:
    from collections.abc import Mapping

SUPPORT = "~/Library/Application Support"


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one kind of export."""

    name: str
    """What the application looks for, in its folder."""
    source: str | None = None
    """The export's file that becomes `name`; None: all its files, in a folder `name`."""
    num_mels: int | None = None
    """Mel bands that the application takes for granted; None: it reads them from the model."""
    is_legacy: bool = False
    """For older versions of the application: promoted only when a row is named."""


@dataclass(frozen=True, slots=True)
class Target:
    """An application, or a folder."""

    name: str
    title: str
    slots: Mapping[str, Slot]
    """By kind of export."""
    app: str = ""
    """The application's own folder on a Mac, which it makes when it first starts; empty: it has none."""
    models: str = ""
    """Where models lie in it."""

    def default_folder(self) -> Path:
        """Raises SuiteError where no folder is known, MissingError where the application has never been started."""
        if not self.app:
            raise SuiteError(f"target '{self.name}' has no folder of its own; give one: --to DIR")
        if sys.platform != "darwin":
            raise SuiteError(f"{self.title}'s folder is known on a Mac only; give the folder to install into: --to DIR")
        app = Path(self.app).expanduser()
        if not app.is_dir():
            raise MissingError(f"{app} does not exist; start {self.title} once, or give another folder: --to DIR")
        return app / self.models

    def slot(self, export_kind: str) -> Slot:
        """Raises SuiteError for an export that the application does not run."""
        if export_kind not in self.slots:
            raise SuiteError(
                f"{self.title} runs {', '.join(self.slots)}, but this model is {export_kind}; "
                "export it in another form, or install it elsewhere: --target folder --to DIR"
            )
        return self.slots[export_kind]


GGML = "ggml-model.bin"
RUSSIAN = Slot("whisper-russian-ggml.bin", source=GGML)

TARGETS = {
    target.name: target
    for target in (
        Target(
            "mimir",
            "Mimir",
            {
                "whisper_ggml": RUSSIAN,
                "parakeet_onnx": Slot("parakeet-russian-onnx", num_mels=128),
                "parakeet_nemo": Slot("parakeet_russian.nemo", source="model.nemo", is_legacy=True),
            },
            app=f"{SUPPORT}/mimir",
            models="models",
        ),
        Target("handy", "Handy", {"whisper_ggml": RUSSIAN}, app=f"{SUPPORT}/com.pais.handy", models="models"),
        Target(
            "voiceink",
            "VoiceInk",
            {"whisper_ggml": RUSSIAN},
            app=f"{SUPPORT}/com.prakashjoshipax.VoiceInk",
            models="WhisperModels",
        ),
        Target(
            "folder",
            "a folder",
            {
                "whisper_ggml": Slot(GGML, source=GGML),
                "whisper_onnx": Slot("whisper-onnx"),
                "parakeet_onnx": Slot("parakeet-onnx"),
                "parakeet_nemo": Slot("model.nemo", source="model.nemo"),
            },
        ),
    )
}


def target(name: str) -> Target:
    """Raises SuiteError for a name that nobody knows."""
    if name not in TARGETS:
        raise SuiteError(f"unknown target '{name}'; known: {', '.join(TARGETS)}")
    return TARGETS[name]
