"""A suite file → a `Suite`, or all its mistakes at once, each with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness.errors import Problem, SuiteError
from harness.suite.document import Document, dotted, read
from harness.suite.kinds import kinds
from harness.suite.model import ModelSpec, changes, variant_name
from harness.suite.references import entries, reference_faults
from harness.suite.schema import Suite
from harness.suite.sources import mapping
from harness.suite.trials import rung_faults, search_faults
from harness.suite.wording import Fault, did_you_mean, fault, found, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.suite.document import Place
    from harness.suite.spec import Spec

RECORDINGS = "recordings"
"""Of a training's `augment.noise`: a folder."""


def load(path: Path) -> Suite:
    """Read and check a suite. Paths in it are relative to its folder.

    Raises SuiteError with every mistake that could be found.
    """
    if not path.is_file():
        known = [item.name for item in sorted(path.parent.glob("*.y*ml"))]
        raise SuiteError(f"{path}: no such suite file{did_you_mean(path.name, known)}")
    document = read(path)
    problems = [Problem(document.file, line, where, message) for line, where, message in document.faults]
    suite, faults = _parse(document)
    problems += [Problem(document.file, document.line(place), dotted(place), message) for place, message in faults]
    if problems or suite is None:
        problems.sort(key=lambda problem: problem.line)
        count = f"{len(problems)} mistake{'s' if len(problems) != 1 else ''}"
        raise SuiteError(f"{path}: {count} in this suite", tuple(problems))
    return suite


def _parse(document: Document) -> tuple[Suite | None, list[Fault]]:
    data = document.data
    if not isinstance(data, dict):
        if document.faults:
            return None, []
        return None, [((), f"expected a mapping that starts with `suite: NAME`, found {found(data)}")]
    folder = Path(document.file).parent
    faults: list[Fault] = []
    suite = None
    try:
        suite = Suite.model_validate(_absolute(data, folder))
    except ValidationError as error:
        faults += [fault(detail, root=Suite) for detail in error.errors(include_url=False)]
    faults += [*reference_faults(data), *_file_faults(data, folder)]
    faults += [item for name, model in entries(data, "models") for item in _variant_faults(name, model)]
    if suite is not None and not faults:
        faults += [*_label_faults(suite), *search_faults(suite)]
    if suite is not None and not faults:
        faults += [*_expansion_faults(suite), *rung_faults(suite)]
    return suite, faults


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The data with the paths in it absolute.

    These are `path` of datasets, `base` of models where it is a folder, `recordings` of noise, and the training set's
    `exclude`.
    """

    def resolved(section: str, field: str, *, only_existing: bool) -> Any:
        changed = {}
        for name, entry in entries(data, section):
            value = entry.get(field)
            # `base: {config: FILE}` is a file too, where it is not a name.
            inner = value.get("config") if isinstance(value, dict) else value
            if isinstance(inner, str) and inner:
                path = _inside(folder, inner)
                if path.exists() or not only_existing:
                    changed[name] = {**entry, field: str(path) if inner is value else {"config": str(path)}}
        return {**data[section], **changed} if changed else data[section]

    absolute = {
        section: resolved(section, field, only_existing=only_existing)
        for section, field, only_existing in (("datasets", "path", False), ("models", "base", True))
        if section in data
    }
    if "models" in absolute:
        absolute["models"] = _with_recordings(absolute["models"], folder)
    exclude = _excluded(data)
    if exclude:
        absolute["train"] = {**data["train"], "exclude": str(_inside(folder, exclude))}
    return {**data, **absolute}


def _with_recordings(value: Any, folder: Path) -> Any:
    """Models with the folders of noise absolute, in `train`, `grid` or `variants`."""
    if isinstance(value, list):
        return [_with_recordings(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: str(_inside(folder, item))
        if name == RECORDINGS and isinstance(item, str)
        else _with_recordings(item, folder)
        for name, item in value.items()
    }


def _recordings(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if name == RECORDINGS and isinstance(item, str):
            yield (*place, name), item
        else:
            yield from _recordings(item, (*place, name))


def _excluded(data: dict[str, Any]) -> str:
    name = mapping(data.get("train")).get("exclude")
    return name if isinstance(name, str) else ""


def _file_faults(data: dict[str, Any], folder: Path) -> Iterator[Fault]:
    """A file that would be missed only after hours of preparation."""
    name = _excluded(data)
    if name and not _inside(folder, name).is_file():
        yield ("train", "exclude"), f"there is no file {_inside(folder, name).as_posix()}"
    for place, named in _recordings(data.get("models"), ("models",)):
        if not _inside(folder, named).is_dir():
            yield place, f"there is no folder {_inside(folder, named).as_posix()}"


def _inside(folder: Path, text: str) -> Path:
    return (folder / _at_home(text)).resolve()


def _at_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)  # `~name` of somebody unknown here is a name like any other


def _variant_faults(name: str, model: dict[str, Any]) -> Iterator[Fault]:
    """Each value of the grid and of each named variant, tried alone, so that the fault has its own line.

    Works on plain data: other mistakes of the suite do not hide these.
    """
    if not isinstance(model.get("kind"), str) or model["kind"] not in kinds("model"):
        return
    spec = kinds("model")[model["kind"]].Spec
    if not issubclass(spec, ModelSpec):
        return
    training: Any = spec.model_fields["train"].annotation
    known, declared = list(training.model_fields), mapping(model.get("train"))
    already = _faults_of(training, declared)
    grid: list[tuple[Place, str, Any]] = [
        (("models", name, "grid", field, part), field, value)
        for field, values in mapping(model.get("grid")).items()
        for part, value in _ends(values)
    ]
    named: list[tuple[Place, str, Any]] = [
        (("models", name, "variants", variant, field), field, value)
        for variant, fields in mapping(model.get("variants")).items()
        for field, value in mapping(fields).items()
    ]
    for place, field, value in grid + named:
        if field in known:
            faults = _faults_of(training, {**declared, field: value})
            yield from (((*place, *inner[1:]), message) for inner, message in faults if (inner, message) not in already)
    fields = dict.fromkeys((place[:4] if place[2] == "grid" else place, field) for place, field, _ in grid + named)
    yield from ((place, unknown("training field", field, known=known)) for place, field in fields if field not in known)


def _ends(values: Any) -> list[tuple[str | int, Any]]:
    """What is tried of the values of a grid: each of a list, both ends of a range."""
    if isinstance(values, list):
        return list(enumerate(values))
    ends = ((end, mapping(values).get(end)) for end in ("from", "to"))
    return [(end, value) for end, value in ends if isinstance(value, int | float)]


def _faults_of(training: type[Spec], fields: dict[str, Any]) -> list[Fault]:
    try:
        training.model_validate(fields)
    except ValidationError as error:
        return [fault(detail, root=training) for detail in error.errors(include_url=False)]
    return []


def _expansion_faults(suite: Suite) -> Iterator[Fault]:
    """Variants whose fields are right one by one, but not together."""
    for name, model in suite.models.items():
        if not isinstance(model, ModelSpec):
            continue
        declared = model.train.model_dump(exclude_unset=True)
        for _, fields in changes(model, seed=suite.seed):
            for _, message in _faults_of(type(model.train), {**declared, **fields}):
                yield ("models", name), f"{variant_name(fields)}: {message}"


def _label_faults(suite: Suite) -> Iterator[Fault]:
    """Exports of one model, and runtimes, that the board could not tell apart."""
    lists: list[tuple[Place, list[str]]] = [
        (("models", name, "export"), [item.label for item in model.runnable]) for name, model in suite.models.items()
    ]
    lists.append((("score", "runtimes"), [runtime.label for runtime in suite.score.runtimes]))
    for place, labels in lists:
        for index, label in enumerate(labels):
            if label in labels[:index]:
                yield (*place, index), f"'{label}' is already in this list; the board could not tell the two apart"
