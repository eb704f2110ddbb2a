from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest

from harness.errors import MissingError, SuiteError
from harness.promote.targets import TARGETS, target
from harness.suite.kinds import kinds
from harness.suite.schema import Promotion


def test_a_suite_may_name_every_target() -> None:
    assert set(get_args(Promotion.model_fields["target"].annotation)) == set(TARGETS)


def test_slots_are_for_kinds_of_export() -> None:
    assert {kind for item in TARGETS.values() for kind in item.slots} <= set(kinds("export"))


def test_no_two_slots_of_a_target_share_a_name() -> None:
    for item in TARGETS.values():
        names = [slot.name for slot in item.slots.values()]
        assert len(set(names)) == len(names), item.name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mimir", "Library/Application Support/mimir/models"),
        ("handy", "Library/Application Support/com.pais.handy/models"),
        ("voiceink", "Library/Application Support/com.prakashjoshipax.VoiceInk/WhisperModels"),
    ],
)
def test_where_applications_look(name: str, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(MissingError, match=r"does not exist; start \w+ once, or give another folder: --to DIR"):
        target(name).default_folder()
    (tmp_path / folder).parent.mkdir(parents=True)
    assert target(name).default_folder() == tmp_path / folder
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SuiteError, match="folder is known on a Mac only; give the folder to install into: --to DIR"):
        target(name).default_folder()


def test_what_has_no_folder() -> None:
    with pytest.raises(SuiteError, match="target 'folder' has no folder of its own; give one: --to DIR"):
        target("folder").default_folder()


def test_unknown_target_and_wrong_slot() -> None:
    with pytest.raises(SuiteError, match="unknown target 'mimer'; known: mimir, handy, voiceink, folder"):
        target("mimer")
    with pytest.raises(
        SuiteError, match="Handy runs whisper_ggml, but this model is parakeet_onnx; export it in anoth"
    ):
        target("handy").slot("parakeet_onnx")
