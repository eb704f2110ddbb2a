"""Models from scratch: a NeMo configuration with random weights, for tiny models and experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.nemo_file import check_config
from harness.errors import DataError
from harness.train.tokenizer import ALPHABET, train_tokenizer

if TYPE_CHECKING:
    from harness.suite.spec import Seed

SHIPPED = Path(__file__).parent / "architectures"


def locate(config: str) -> Path:
    """The file of a configuration: a path, or the name of one that comes with harness."""
    path = Path(config).expanduser()
    shipped = SHIPPED / f"{config}.yaml"
    return shipped if not path.is_file() and shipped.is_file() else path.absolute()


def build(config: str, *, seed: Seed, scratch: Path, target: Path) -> None:
    """Save a model with random weights as a `.nemo` file; its tokens are the letters, until a training changes them.

    config: a file, or a name, as `locate` takes it.
    Raises DataError for a configuration that NeMo cannot build, MissingError if there is none.
    """
    import torch
    from nemo.collections.asr import models
    from omegaconf import OmegaConf

    path = locate(config)
    settings = check_config(path)
    letters = train_tokenizer(list(ALPHABET), vocab_size=len(ALPHABET) + 2, kind="char", folder=scratch / "letters")
    settings["tokenizer"] = {"dir": str(letters), "type": "bpe"}
    torch.manual_seed(seed)
    try:
        model = getattr(models, settings["target"].rpartition(".")[2])(OmegaConf.create(settings))
    except Exception as error:
        # NeMo, Hydra and OmegaConf raise what they like; all of them mean the configuration.
        raise DataError(f"{path}: NeMo builds no model of it: {type(error).__name__}: {error}") from error
    model.save_to(str(target))
