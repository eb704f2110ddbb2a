"""A YAML file as plain data that remembers its lines, read by YAML 1.2's rules.

PyYAML reads by YAML 1.1: `1e-5` is a string there, `no` is False, `010` is 8, and of two equal keys the last one
silently wins. Here numbers are numbers, only `true` and `false` are booleans, and a second key is a problem.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

Place = tuple[str | int, ...]
"""Where something stands: `("models", "whisper", "grid", "learning_rate", 0)`."""

NULL = re.compile(r"~|null|Null|NULL|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?[0-9]{1,300}")  # longer ones are infinite, and refused as such
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
STRING_TAG = "tag:yaml.org,2002:str"


@dataclass(slots=True)
class Document:
    """The data of a YAML file, the line of each place in it, and what is wrong with the YAML itself."""

    file: str
    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    """Line, where, message."""

    def line(self, place: Place) -> int:
        """The line of the deepest part of `place` that the file has; parts it does not have are passed over."""
        found: Place = ()
        for part in place:
            if (*found, part) in self.lines:
                found = (*found, part)
        return self.lines.get(found, 1)


class _Loader(yaml.SafeLoader):
    """Composes nodes with untyped scalars: their types are decided here, by YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own class attribute


def read(path: Path) -> Document:
    """Read a YAML file. Faults of the YAML are collected, not raised."""
    document = Document(file=path.as_posix())
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_Loader)  # a SafeLoader, and nothing is constructed
    except UnicodeDecodeError as error:
        document.faults.append((1, "file", f"is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        document.faults.append((line, "YAML", " ".join(filter(None, [error.context, error.problem]))))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.faults.append((line, "YAML", f"the character U+{error.character:04X} may not stand in YAML"))
    except RecursionError:
        document.faults.append((1, "YAML", "is nested more deeply than any suite"))
    else:
        try:
            document.data = None if root is None else _plain(root, (), document)
        except RecursionError:
            document.faults.append((1, "YAML", "an alias (*name) stands inside the very part that it repeats"))
    return document


def _plain(node: yaml.Node, place: Place, document: Document) -> Any:
    document.lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, document)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*place, index), document) for index, item in enumerate(node.value)]
    plain = isinstance(node, yaml.ScalarNode) and node.style is None and node.tag == STRING_TAG
    return _scalar(node.value) if plain else node.value


def _mapping(node: yaml.MappingNode, place: Place, document: Document) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append((line, dotted(place), "a key must be a plain word"))
            continue
        key = key_node.value
        if key in data:
            first = document.lines[(*place, key)]
            document.faults.append((line, dotted((*place, key)), f"this key already stands in line {first}; keep one"))
            continue
        document.lines[(*place, key)] = line
        data[key] = _plain(value_node, (*place, key), document)
    return data


def _scalar(text: str) -> Any:
    if NULL.fullmatch(text):
        return None
    if BOOL.fullmatch(text):
        return text.lower() == "true"
    if INT.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    return text


def dotted(place: Place) -> str:
    """`models.whisper.grid.learning_rate[0]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "suite"
