"""Reading a Hugging Face checkpoint tensor by tensor, without torch: a large model need not fit into memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self

from harness.core.files import parse_json_file
from harness.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ExportError if it is missing or none."""
    try:
        value = parse_json_file(path)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read ({error}); the checkpoint is not whole: save it again") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path}: holds a {type(value).__name__}, not an object; the checkpoint is damaged")
    return value


class Checkpoint:
    """The weights of a Hugging Face folder: one safetensors file, or shards with an index.

    Raises ExportError if a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        try:
            for path in _shards(folder):
                self._add(path)
        except BaseException:
            self._open.close()
            raise

    def _add(self, path: Path) -> None:
        import ml_dtypes  # noqa: F401 - teaches numpy bfloat16
        from safetensors import SafetensorError, safe_open

        try:
            file = self._open.enter_context(safe_open(path, framework="numpy"))
        except (OSError, SafetensorError) as error:
            raise ExportError(
                f"{path}: cannot be read ({error}); the checkpoint is not whole: save it again"
            ) from error
        self._files.update(dict.fromkeys(file.keys(), file))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()
        self._open.close()

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).get_slice(name).get_shape())

    def read(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, stored as fp32, fp16 or bf16, as float32.

        Raises ExportError for a missing tensor, another type, and for what is not finite.
        """
        import numpy as np

        stored = self._file(name).get_slice(name).get_dtype()
        if stored not in {"F32", "F16", "BF16"}:
            raise ExportError(f"{self.folder}: tensor {name!r} is stored as {stored}; save it as F32, F16 or BF16")
        values: NDArray[np.float32] = self._file(name).get_tensor(name).astype(np.float32)
        if not np.isfinite(values).all():
            raise ExportError(f"{self.folder}: tensor {name!r} holds NaN or infinity; the training diverged")
        return values

    def _file(self, name: str) -> Any:
        if name not in self._files:
            raise ExportError(f"{self.folder}: no tensor {name!r} among {len(self._files)}; this is no Whisper model")
        return self._files[name]


def _shards(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise ExportError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE}; save the model as safetensors")
    named = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(named, dict):
        raise ExportError(f"{folder / INDEX_FILE}: has no `weight_map` from tensors to files; save the model again")
    for name in named.values():
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
            raise ExportError(f"{folder / INDEX_FILE}: {name!r} is not the name of a file beside it")
    return [folder / name for name in sorted(set(named.values()))]
