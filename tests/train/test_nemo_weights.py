"""Finding `.nemo` files, models from scratch, and the refusal of what is not to be trusted or not Russian."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.core.artifact import Work
from harness.core.nemo_file import quiet
from harness.errors import DataError, MissingError
from harness.train import nemo_config, nemo_weights
from harness.train.nemo_weights import Spec, find
from harness.train.tokenizer import ALPHABET

HUB_ID = "nvidia/parakeet-tdt-0.6b-v3"
TARGET = "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.train.nemo_weights._from_hub", away)
    return tmp_path / "cache"


def away(*_: Any, **__: Any) -> Path:
    raise nemo_weights._NotHereError("away")


def nemo_file(path: Path, *, vocabulary: str | list[str] = ALPHABET, **config: Any) -> Path:
    """A `.nemo` as far as its checks look: no weights are loaded."""
    settings = {"target": TARGET, "joint": {"vocabulary": list(vocabulary)}, **config}
    files = {
        "model_config.yaml": yaml.safe_dump(settings, allow_unicode=True).encode(),
        "model_weights.ckpt": b"PK\x03\x04",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def placed(work: Work) -> bytes:
    return (work.path / "model" / "model.nemo").read_bytes()


def test_a_local_file_is_copied_and_described(tmp_path: Path, work: Work) -> None:
    path = nemo_file(tmp_path / "mine" / "ours.nemo")
    meta = nemo_weights.run(Spec(base=str(path)), {}, work)
    assert placed(work) == path.read_bytes()
    assert (meta["origin"], meta["model_class"], meta["vocab_size"]) == ("file", "EncDecRNNTBPEModel", len(ALPHABET))
    assert (meta["licence"], meta["notes"]) == (None, [])
    path.write_bytes(b"changed")
    assert placed(work) != b"changed"


def test_a_folder_gives_its_only_model(tmp_path: Path) -> None:
    path = nemo_file(tmp_path / "folder" / "one.nemo")
    assert find(str(path.parent)) == (path, "file")
    nemo_file(tmp_path / "folder" / "two.nemo")
    with pytest.raises(
        MissingError, match=r"folder has 2 \.nemo files: one\.nemo, two\.nemo, not one; give the \.nemo"
    ):
        find(str(path.parent))


def test_a_hub_id_is_looked_for_in_the_project_s_cache(cache: Path, work: Work) -> None:
    path = nemo_file(cache / "weights" / "nvidia--parakeet-tdt-0.6b-v3" / "main" / "parakeet.nemo")
    assert find(HUB_ID) == (path, "cache")
    assert nemo_weights.run(Spec(base=HUB_ID), {}, work)["licence"] == "CC-BY-4.0"


def test_what_is_not_to_be_had_says_where_to_put_it(cache: Path) -> None:
    with pytest.raises(MissingError) as caught:
        find(HUB_ID)
    lines = str(caught.value).splitlines()
    folder = cache / "weights" / "nvidia--parakeet-tdt-0.6b-v3" / "main"
    assert lines[0] == f"base: {HUB_ID} (revision main) is not to be had; tried:"
    assert lines[1] == f"  the project's cache: {folder} has 0 .nemo files, not one"
    assert [line.strip() for line in lines[2:4]] == ["Hugging Face's cache: away", "the hub: away"]
    assert lines[5].strip() == str(folder)


def test_a_base_that_is_nothing_is_an_error() -> None:
    with pytest.raises(MissingError, match="base: 'nonsense' is no file here, and no hub id such as nvidia/"):
        find("nonsense")


def test_a_hostile_file_is_refused_before_it_is_placed(tmp_path: Path, work: Work) -> None:
    path = nemo_file(tmp_path / "evil.nemo", encoder={"_target_": "os.system", "command": "touch /tmp/owned"})
    with pytest.raises(DataError, match=r"evil\.nemo: refused: encoder\._target_ is 'os\.system'"):
        nemo_weights.run(Spec(base=str(path)), {}, work)
    assert list((work.path / "model").iterdir()) == []


@pytest.mark.parametrize("vocabulary", [["▁the", "ing"], []])
def test_a_vocabulary_without_cyrillic_is_refused_with_the_letters(
    vocabulary: list[str], tmp_path: Path, work: Work
) -> None:
    path = nemo_file(tmp_path / "english.nemo", vocabulary=vocabulary)
    with pytest.raises(
        DataError, match=rf"english\.nemo: none of its {len(vocabulary)} tokens writes {ALPHABET}; take"
    ):
        nemo_weights.run(Spec(base=str(path)), {}, work)


def test_an_english_base_that_learns_new_tokens_is_warned_of(tmp_path: Path, work: Work) -> None:
    path = nemo_file(tmp_path / "english.nemo", vocabulary=["▁the"])
    (note,) = nemo_weights.run(Spec(base=str(path), vocabulary="replaced"), {}, work)["notes"]
    assert note.endswith(f"cannot write {ALPHABET}: its zero-shot rows know no Russian, its variants learn new tokens")


def test_a_few_rare_letters_may_be_missing(tmp_path: Path, work: Work) -> None:
    path = nemo_file(tmp_path / "small.nemo", vocabulary=ALPHABET.replace("ъ", ""))
    (note,) = nemo_weights.run(Spec(base=str(path)), {}, work)["notes"]
    assert note.endswith("none of its 31 tokens writes ъ")


def test_local_files_count_by_content_and_hub_ids_by_name(tmp_path: Path) -> None:
    paths = [nemo_file(tmp_path / folder / "a.nemo") for folder in ("here", "there")]
    assert Spec(base=str(paths[0])).identity() == Spec(base=str(paths[1])).identity()
    assert [Spec(base=str(path)).outside() for path in paths] == [[path] for path in paths]
    assert Spec(base=HUB_ID).outside() == []
    assert Spec(base=HUB_ID).identity() != Spec(base=HUB_ID, revision="v2").identity()
    shipped = Spec(config="parakeet-nano")
    assert shipped.outside() == [nemo_config.SHIPPED / "parakeet-nano.yaml"]
    assert shipped.identity() != Spec(config="parakeet-nano", seed=1).identity()


def test_the_shipped_architecture_is_a_million_random_weights(tmp_path: Path) -> None:
    import torch

    from harness.core.nemo_file import restore

    found = []
    for seed in (1, 1, 2):
        work = Work(path=tmp_path / f"out{len(found)}", scratch=tmp_path / f"scratch{len(found)}")
        work.path.mkdir()
        with quiet():
            meta = nemo_weights.run(Spec(config="parakeet-nano", seed=seed), {}, work)
            found.append(restore(work.path / "model" / "model.nemo"))
    assert (meta["origin"], meta["base"], meta["vocab_size"]) == ("config", "config parakeet-nano", len(ALPHABET) + 2)
    assert 900_000 < sum(item.numel() for item in found[0].parameters()) < 1_100_000
    weights = [torch.nn.utils.parameters_to_vector(model.parameters()) for model in found]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert found[0].tokenizer.ids_to_text(found[0].tokenizer.text_to_ids("съешь ещё".replace("ё", "е"))) == "съешь еще"


def test_a_configuration_that_builds_no_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(f"target: {TARGET}\nsample_rate: 16000\n", encoding="utf-8")
    with quiet(), pytest.raises(DataError, match=r"broken\.yaml: NeMo builds no model of it: "):
        nemo_config.build(str(path), seed=0, scratch=tmp_path, target=tmp_path / "model.nemo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: os.system\n", "its model is 'os.system'"),
        (f"target: {TARGET}\nencoder: {{_target_: builtins.eval}}\n", "encoder._target_ is 'builtins.eval'"),
        (f"target: {TARGET}\nname: ${{oc.env:HOME}}\n", "would be evaluated"),
    ],
)
def test_a_configuration_is_trusted_no_more_than_a_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        nemo_config.build(str(path), seed=0, scratch=tmp_path, target=tmp_path / "model.nemo")


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nothing\.yaml: there is no such"):
        nemo_config.build("nothing.yaml", seed=0, scratch=tmp_path, target=tmp_path / "model.nemo")
