from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from pydantic import model_validator

from harness.errors import SuiteError
from harness.suite import document
from harness.suite.kinds import FOLDERS, kinds
from harness.suite.load import _expansion_faults, load
from harness.suite.schema import json_schema
from harness.train import whisper

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICKSTART = Path(__file__).parent.parent.parent / "suites" / "quickstart.yaml"

SOUND = """\
suite: small
seed: 5
datasets:
  aelita:
    kind: manifest
    path: clips/manifest.jsonl
    split: {dev: 0.1, test: 0.2}
  books: {kind: manifest, path: books.jsonl}
train: {from: [aelita/train, books/train]}
heldout:
  dev: {from: aelita/dev, role: dev}
  test:
    from: aelita/test
    role: test
models:
  base:
    kind: whisper
    base: openai/whisper-base
    train: {max_steps: 100, packing: {window_s: 29.5}}
    grid:
      learning_rate: [1e-5, 3e-5]
      warmup_steps:
        - 4
        - 12
    variants:
      slow: {epochs: 9}
    export: [whisper_onnx, {kind: whisper_ggml}]
score:
  runtimes: [onnx, whispercpp]
  normalise: ru
gate: {better_than: zero-shot, rtf: {max: 1.0}}
promote: {target: mimir}
"""


def mistakes(folder: Path, text: str | bytes) -> list[str]:
    """`LINE: WHERE: MESSAGE` of each mistake, in the order in which they are reported."""
    path = folder / "small.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SuiteError) as caught:
        load(path)
    problems, message = caught.value.problems, str(caught.value)
    assert message.startswith(f"{path}: {len(problems)} mistake{'s' if len(problems) > 1 else ''} in this suite\n")
    assert message.count(f"\n  {path.as_posix()}:") == len(problems)
    assert caught.value.exit_code == 2
    return [f"{item.line}: {item.where}: {item.message}" for item in problems]


def edited(*changes: tuple[str, str]) -> str:
    """The sound suite with some of its text replaced."""
    text = SOUND
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_a_sound_suite(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SOUND, encoding="utf-8")
    suite = load(tmp_path / "small.yaml")
    assert suite.datasets["aelita"].path == str((tmp_path / "clips" / "manifest.jsonl").resolve())
    assert [export.kind for export in suite.models["base"].export] == ["whisper_onnx", "whisper_ggml"]
    assert suite.models["base"].grid == {"learning_rate": [1e-5, 3e-5], "warmup_steps": [4, 12]}


def cases() -> Iterator[Any]:
    """The blocks of `mistakes.txt`: old text, new text, mistakes."""
    text = (Path(__file__).parent / "mistakes.txt").read_text(encoding="utf-8")
    known = {what: list(kinds(what)) for what in FOLDERS}
    known["manifest"] = sorted(kinds("dataset")["manifest"].Spec.model_fields)
    for what, names in known.items():
        text = text.replace(f"{{{what}}}", ", ".join(names))
    for block in text.split("\n\n"):
        head, *expected = [line for line in block.splitlines() if not line.startswith("#")] or [""]
        if head:
            old, _, new = head.replace("\\n", "\n").partition(" →")
            yield pytest.param(old, new[1:], [line.removeprefix("    ") for line in expected], id=head)


@pytest.mark.parametrize(("old", "new", "expected"), cases())
def test_each_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    if expected:
        assert mistakes(tmp_path, edited((old, new))) == expected
    else:
        (tmp_path / "small.yaml").write_text(edited((old, new)), encoding="utf-8")
        load(tmp_path / "small.yaml")


@pytest.mark.parametrize(
    ("source", "rule", "expected"),
    [
        ("books/train", "", ""),
        ("books/tset", ", split: null", "unknown split 'tset'; did you mean 'test'? (known: train, test)"),
        (
            "books/dev",
            ", split: null",
            (
                "unknown split 'dev' (known: train, test); to take it out of train, give the dataset "
                "`split: {dev: 0.01, test: 0.01}` or the like"
            ),
        ),
        ("books/dev", ", split: {dev: 0.01, test: 0}", ""),
        ("books/validated", ", split: {dev: 0.01, test: 0}", "unknown split 'validated' (known: train, test, dev)"),
    ],
)
def test_splits_of_a_corpus_that_is_known(tmp_path: Path, source: str, rule: str, expected: str) -> None:
    kind = f"{{kind: golos, path: books{rule}}}"
    text = edited(("{kind: manifest, path: books.jsonl}", kind), ("books/train", source))
    if expected:
        assert mistakes(tmp_path, text) == [f"9: train.from[1]: {expected}"]
    else:
        (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
        assert load(tmp_path / "small.yaml").train.sources == ["aelita/train", source]


def test_a_list_of_exclusions_must_be_there(tmp_path: Path) -> None:
    text = edited(("train: {from:", "train: {exclude: lists/bad.jsonl, from:"))
    missing = (tmp_path / "lists" / "bad.jsonl").resolve()
    assert mistakes(tmp_path, text) == [f"9: train.exclude: there is no file {missing.as_posix()}"]
    missing.parent.mkdir()
    missing.write_text('{"id": "a"}\n', encoding="utf-8")
    assert load(tmp_path / "small.yaml").train.exclude == str(missing)


def test_recordings_of_noise_are_looked_for_beside_the_suite(tmp_path: Path) -> None:
    noise = "{noise: {p: 0.5, recordings: streets}}"
    text = edited(("max_steps: 100", f"max_steps: 100, augment: {noise}"))
    missing = tmp_path / "streets"
    assert mistakes(tmp_path, text) == [
        f"19: models.base.train.augment.noise.recordings: there is no folder {missing.as_posix()}"
    ]
    missing.mkdir()
    assert load(tmp_path / "small.yaml").models["base"].train.augment.noise.recordings == str(missing)


@pytest.mark.parametrize(
    ("share", "hours", "weight"),
    [("all", None, 1.0), ("100h", 100.0, 1.0), ("1.5 h", 1.5, 1.0), ("2", None, 2.0), ("{take: 0.3}", None, 0.3)],
)
def test_shares_of_a_mix(tmp_path: Path, share: str, hours: float | None, weight: float) -> None:
    mix = f"train: {{mix: {{aelita: {share}, books/public_val: all}}, drop_heldout: []}}"
    text = edited(("train: {from: [aelita/train, books/train]}", mix))
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    train = load(tmp_path / "small.yaml").train
    assert train.sources == ["aelita/train", "books/public_val"]
    assert (train.shares["aelita/train"].hours, train.shares["aelita/train"].weight) == (hours, weight)
    schema = json.loads(json.dumps(json_schema()))
    assert (
        list(
            jsonschema.validators.validator_for(schema)(schema).iter_errors(document.read(tmp_path / "small.yaml").data)
        )
        == []
    )


NO_MAPPING = "1: suite: expected a mapping that starts with `suite: NAME`, found"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", f"{NO_MAPPING} nothing"),
        ("# nothing yet\n", f"{NO_MAPPING} nothing"),
        ("- a\n- b\n", f"{NO_MAPPING} ['a', 'b'] (list)"),
        ("suite: a\ntrain: [a/b\nseed: 1\n", "3: YAML: while parsing a flow sequence expected ',' or ']', but got ':'"),
        (
            "suite: a\n\tb: 1\n",
            "2: YAML: while scanning for the next token found character '\\t' that cannot start any token",
        ),
        ("suite: a\n---\nsuite: b\n", "2: YAML: expected a single document in the stream but found another document"),
        ("suite: a\nseed: \x07\n", "2: YAML: the character U+0007 may not stand in YAML"),
        ("suite: &a [*a]\n", "1: YAML: an alias (*name) stands inside the very part that it repeats"),
        (
            "suite: малый\n".encode("cp1251"),
            "1: file: is not UTF-8: invalid continuation byte at byte 7; save it as UTF-8",
        ),
    ],
)
def test_a_file_that_is_no_suite(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert mistakes(tmp_path, text) == [expected]


def test_a_key_that_is_no_word(tmp_path: Path) -> None:
    assert "1: suite: a key must be a plain word" in mistakes(tmp_path, "? [a, b]\n: 1\n")


def test_all_mistakes_in_one_go_sorted_by_line(tmp_path: Path) -> None:
    text = edited(
        ("seed: 5", "seed: five"),
        ("kind: manifest\n", "kind: manifset\n"),
        ("books/train", "book/train"),
        ("    role: test", "    rôle: test"),
        ("max_steps: 100", "max_steps: 100, max_steps: 200"),
        ("3e-5]", "-3]"),
        ("[onnx, whispercpp]", "[onnx]"),
    )
    assert [line.split(":")[:2] for line in mistakes(tmp_path, text)] == [
        ["2", " seed"],
        ["5", " datasets.aelita.kind"],
        ["8", " datasets.books"],
        ["9", " train.from[1]"],
        ["12", " heldout.test.role"],
        ["14", " heldout.test.rôle"],
        ["19", " models.base.train.max_steps"],
        ["21", " models.base.grid.learning_rate[1]"],
        ["27", " models.base.export[1]"],
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-0.5e+3", -500.0), ("12", 12), ("010", 10), ("+7", 7),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("true", True), ("False", False), ("~", None),
        ("null", None), ("", None), ("1_000", "1_000"), ("0x1f", "0x1f"), ("1:30", "1:30"), ("2026-11-22",) * 2,
        ("'1e-5'", "1e-5"), ('"true"', "true"), (".nan", ".nan"), ("1e-5 # low", 1e-5),
    ],
)  # fmt: skip
def test_scalars_are_read_by_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {text}\n", encoding="utf-8")
    read = document.read(path)
    assert (read.data, read.faults) == ({"a": value}, [])
    assert type(read.data["a"]) is type(value)


def test_integers_without_end_are_refused(tmp_path: Path) -> None:
    assert mistakes(tmp_path, edited(("seed: 5", f"seed: {'9' * 5000}"))) == [
        "2: seed: expected a whole number, found inf (number)"
    ]


def test_missing_suite_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SOUND, encoding="utf-8")
    with pytest.raises(SuiteError, match=r"smal\.yaml: no such suite file; did you mean 'small\.yaml'\?"):
        load(tmp_path / "smal.yaml")
    with pytest.raises(SuiteError, match=r"away.large\.yaml: no such suite file$"):
        load(tmp_path / "away" / "large.yaml")


def test_fields_that_fit_alone_but_not_together(tmp_path: Path) -> None:
    class Picky(whisper.Training):
        @model_validator(mode="after")
        def _refuse(self) -> Picky:
            if (self.learning_rate, self.warmup_steps) == (3e-5, 12):
                raise ValueError("too warm")
            return self

    class Spec(whisper.Spec):
        train: Picky = Picky()

    (tmp_path / "small.yaml").write_text(SOUND, encoding="utf-8")
    suite = load(tmp_path / "small.yaml")
    declared = suite.models["base"].model_dump(exclude={"export"}, serialize_as_any=True)
    picky = suite.model_copy(update={"models": {"base": Spec.model_validate({**declared, "export": ["whisper_onnx"]})}})
    assert list(_expansion_faults(picky)) == [(("models", "base"), "lr3e-5-warmup12: too warm")]


@pytest.mark.parametrize("path", sorted(QUICKSTART.parent.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_suites_are_sound(path: Path) -> None:
    assert load(path).suite == path.stem.replace("_", "-")


def test_quickstart_is_sound_and_fits_the_schema() -> None:
    suite = load(QUICKSTART)
    assert (suite.suite, list(suite.datasets), list(suite.heldout)) == ("quickstart", ["aelita"], ["dev", "test"])
    schema = json.loads(json.dumps(json_schema()))
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    data = document.read(QUICKSTART).data
    assert list(validator(schema).iter_errors(data)) == []
    data["models"]["whisper-base"]["trian"] = data["models"]["whisper-base"].pop("train")
    assert not validator(schema).is_valid(data)
