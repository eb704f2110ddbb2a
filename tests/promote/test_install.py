from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import DataError, HarnessError, SuiteError
from harness.promote import install as installing
from harness.promote import payload, smoke, swap
from harness.promote.history import read
from harness.promote.install import install, places, rollback, status
from harness.promote.parcel import opened
from harness.promote.swap import Place
from harness.promote.targets import target
from tests.ggmls import bundle, parakeet, said, write_ggml

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.promote.install import Installed
    from harness.promote.manifest import Manifest

NAME = "whisper-russian-ggml.bin"
MIMIR = target("mimir")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Real models that whisper.cpp runs, by the first word that they say."""
    folder = tmp_path_factory.mktemp("models")
    return {first: write_ggml(folder / "model.bin", first=first).read_bytes() for first in (1000, 2000, 3000)}


@pytest.fixture
def bundles(tmp_path: Path, models: dict[int, bytes]) -> dict[int, Path]:
    return {first: bundle(tmp_path / f"b{first}", model, name=f"row{first}") for first, model in models.items()}


def trust(_payload: Path, /, *, manifest: Manifest, clip: Path) -> str | None:
    """In place of loading the model."""
    assert clip.is_file()
    return manifest.smoke.text


def put(path: Path, folder: Path, *, listen: Any = trust, application: str = "mimir") -> Installed:
    with opened(path) as parcel:
        return install(parcel, target=target(application), folder=folder, listen=listen)


def tree(folder: Path) -> dict[str, bytes]:
    """Everything but the lock."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_first_installation_is_tried_out_by_whisper_cpp(tmp_path: Path, models: dict[int, bytes]) -> None:
    made = bundle(tmp_path / "b", models[1000])
    done = put(made, tmp_path / "deep" / "mod els ё", listen=smoke.listen)
    assert done.path == tmp_path / "deep" / "mod els ё" / NAME
    assert done.path.read_bytes() == models[1000]
    assert (done.record["heard"], done.previous, done.is_new) == (said(1000), None, True)
    assert sorted(path.name for path in done.path.parent.iterdir()) == [".harness", NAME], "nothing for an app to scan"


def test_a_model_that_hears_something_else_is_refused(tmp_path: Path, models: dict[int, bytes]) -> None:
    folder = tmp_path / "models"
    put(bundle(tmp_path / "good", models[1000]), folder)
    before = tree(folder)
    with pytest.raises(
        HarnessError, match=r"it hears 'w2000 .*when it was scored it heard 'w1000 .*5 of 5 words differ"
    ):
        put(bundle(tmp_path / "bad", models[2000]), folder, listen=smoke.listen)
    assert tree(folder) == before


def test_the_way_there_and_back(tmp_path: Path, bundles: dict[int, Path], models: dict[int, bytes]) -> None:
    folder = tmp_path / "models"
    for made in bundles.values():
        done = put(made, folder)
    assert done.previous is not None
    assert done.previous["manifest"]["name"] == "row2000"
    place = Place(folder, NAME)
    assert place.previous.read_bytes() == models[2000], "the one before it, and no older one"
    back = rollback(place, target=MIMIR, reason="it swears", listen=trust)
    assert place.live.read_bytes() == models[2000]
    assert back.record["manifest"]["name"] == "row2000"
    forth = rollback(place, target=MIMIR, listen=trust)
    assert place.live.read_bytes() == models[3000]
    assert forth.previous is not None
    assert forth.previous["manifest"]["name"] == "row2000"
    log = read(folder / ".harness" / "history.jsonl")
    assert [(entry["action"], entry["row"]) for entry in log] == [
        ("install", "row1000"),
        ("install", "row2000"),
        ("install", "row3000"),
        ("rollback", "row2000"),
        ("rollback", "row3000"),
    ]
    assert log[3]["reason"] == "it swears"
    assert len(list((place.home / "clips").iterdir())) == 1, "both models have the same clip"


def test_rollback_tries_the_model_out(tmp_path: Path, models: dict[int, bytes]) -> None:
    for first in (1000, 2000):
        put(bundle(tmp_path / str(first), models[first]), tmp_path / "m")
    back = rollback(Place(tmp_path / "m", NAME), target=MIMIR)
    assert back.record["manifest"]["smoke"]["text"] == said(1000)
    # The bundle of the second claims to say what the first says.
    with pytest.raises(HarnessError, match="5 of 5 words differ"):
        rollback(Place(tmp_path / "m", NAME), target=MIMIR)
    assert (tmp_path / "m" / NAME).read_bytes() == models[1000]


def test_the_same_again_changes_nothing(tmp_path: Path, bundles: dict[int, Path]) -> None:
    put(bundles[1000], tmp_path / "m")
    put(bundles[2000], tmp_path / "m")
    before = tree(tmp_path / "m")
    again = put(bundles[2000], tmp_path / "m")
    assert (again.is_new, again.previous["manifest"]["name"]) == (False, "row1000")  # type: ignore[index]
    assert tree(tmp_path / "m") == before


def test_the_same_again_over_a_damaged_one_mends_it(tmp_path: Path, bundles: dict[int, Path]) -> None:
    put(bundles[1000], tmp_path / "m")
    path = put(bundles[2000], tmp_path / "m").path
    path.write_bytes(path.read_bytes()[:-1])
    again = put(bundles[2000], tmp_path / "m")
    assert again.is_new
    assert again.previous is not None
    assert again.previous["bundle"] == "not installed by harness", "what somebody has changed is kept, too"


def test_a_foreign_model_is_kept_and_comes_back(tmp_path: Path, bundles: dict[int, Path]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / NAME).write_bytes(b"from elsewhere")
    put(bundles[1000], tmp_path / "m")
    back = rollback(Place(tmp_path / "m", NAME), target=MIMIR, listen=trust)
    assert back.record["bundle"] == "not installed by harness"
    assert back.path.read_bytes() == b"from elsewhere"


def test_nothing_to_go_back_to(tmp_path: Path, bundles: dict[int, Path]) -> None:
    with pytest.raises(HarnessError, match="nothing has been installed here yet, so there is nothing to go back to"):
        rollback(Place(tmp_path / "m", NAME), target=MIMIR)
    put(bundles[1000], tmp_path / "m")
    with pytest.raises(HarnessError, match="there is no previous model to go back to; install a bundle instead"):
        rollback(Place(tmp_path / "m", NAME), target=MIMIR)


def test_a_damaged_previous_model_does_not_come_back(tmp_path: Path, bundles: dict[int, Path]) -> None:
    put(bundles[1000], tmp_path / "m")
    put(bundles[2000], tmp_path / "m")
    place = Place(tmp_path / "m", NAME)
    place.previous.write_bytes(b"x" + place.previous.read_bytes()[1:])
    before = tree(tmp_path / "m")
    with pytest.raises(HarnessError, match="previous has changed; install its bundle again: row1000-"):
        rollback(place, target=MIMIR, listen=trust)
    assert tree(tmp_path / "m") == before


def test_a_folder_slot(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    one, two = parakeet(tmp_path / "1", name="one"), parakeet(tmp_path / "2", name="two")
    put(one, folder)
    done = put(two, folder)
    live = folder / "parakeet-russian-onnx"
    assert done.path == live
    model = {"config.json", "decoder_joint-model.onnx", "encoder-model.onnx", "encoder-model.onnx.data", "vocab.txt"}
    assert {path.name for path in live.iterdir()} == model, "no README, no clip"
    assert (live / "encoder-model.onnx").read_bytes() == (two / "encoder-model.onnx").read_bytes()
    rollback(Place(folder, live.name), target=MIMIR, listen=trust)
    assert (live / "encoder-model.onnx").read_bytes() == (one / "encoder-model.onnx").read_bytes()


def test_slots_do_not_mix(tmp_path: Path, bundles: dict[int, Path]) -> None:
    for path in (parakeet(tmp_path / "p"), bundles[1000], bundles[2000]):
        put(path, tmp_path / "m")
    assert [place.name for place in places(MIMIR, folder=tmp_path / "m")] == [NAME]
    assert {item.path.name for item in status(MIMIR, folder=tmp_path / "m")} == {NAME, "parakeet-russian-onnx"}


def test_status_tells_what_has_changed(tmp_path: Path, bundles: dict[int, Path]) -> None:
    folder = tmp_path / "m"
    assert status(MIMIR, folder=folder) == []
    put(bundles[1000], folder)
    put(bundles[2000], folder)
    (found,) = status(MIMIR, folder=folder)
    assert found.record is not None
    assert found.record["manifest"]["name"] == "row2000"
    assert (found.faults, found.previous_faults) == ([], [])
    (folder / NAME).write_bytes(b"overwritten")
    Place(folder, NAME).previous.unlink()
    (found,) = status(MIMIR, folder=folder)
    assert found.faults == [f"{NAME} has changed"]
    assert found.previous_faults == ["it is gone"]


def test_status_of_a_folder_slot(tmp_path: Path) -> None:
    live = put(parakeet(tmp_path / "1"), tmp_path / "m").path
    (live / "vocab.txt").unlink()
    (live / "more.txt").write_text("x", encoding="utf-8")
    (live / ".DS_Store").write_text("the Finder's", encoding="utf-8")
    (found,) = status(MIMIR, folder=tmp_path / "m")
    assert found.faults == ["vocab.txt is missing", "more.txt has been added"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to replace an open file")
def test_an_app_that_reads_the_old_model_goes_on_reading_it(
    tmp_path: Path, bundles: dict[int, Path], models: dict[int, bytes]
) -> None:
    path = put(bundles[1000], tmp_path / "m").path
    with path.open("rb") as reader:
        begun = reader.read(1000)
        put(bundles[2000], tmp_path / "m")
        assert begun + reader.read() == models[1000]
    assert path.read_bytes() == models[2000]


def test_the_path_always_leads_to_a_whole_model(
    tmp_path: Path, bundles: dict[int, Path], models: dict[int, bytes]
) -> None:
    """An application that opens it again and again, while versions come and go."""
    path = put(bundles[1000], tmp_path / "m").path
    whole, seen, ended = set(models.values()), set(), threading.Event()

    def app() -> None:
        while not ended.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=app)
    reader.start()
    for first in (2000, 3000, 1000, 2000):
        put(bundles[first], tmp_path / "m")
    ended.set()
    reader.join()
    assert seen
    assert seen <= whole


def test_a_file_system_without_links(tmp_path: Path, bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    put(bundles[1000], tmp_path / "m")
    put(bundles[2000], tmp_path / "m")
    back = rollback(Place(tmp_path / "m", NAME), target=MIMIR, listen=trust)
    assert back.record["manifest"]["name"] == "row1000"


def flipped(folder: Path) -> None:
    path = folder / "ggml-model.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_readme(folder: Path) -> None:
    path = folder / "README.txt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def other_clip(folder: Path) -> None:
    path = folder / "smoke.wav"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flipped, "ggml-model.bin: sha256 is .*, its manifest says .*; copy it again from where it was made"),
        (other_readme, "README.txt: sha256 is .*, its manifest says"),
        (other_clip, "smoke.wav: sha256 is .*, its manifest says"),
    ],
)
def test_a_damaged_bundle_changes_nothing(
    tmp_path: Path, bundles: dict[int, Path], spoil: Callable[[Path], None], message: str
) -> None:
    put(bundles[1000], tmp_path / "m")
    before = tree(tmp_path / "m")
    spoil(bundles[2000])
    with pytest.raises(HarnessError, match=message):
        put(bundles[2000], tmp_path / "m")
    assert tree(tmp_path / "m") == before


def test_a_flipped_bit_in_a_zip_changes_nothing(tmp_path: Path, bundles: dict[int, Path]) -> None:
    put(bundles[1000], tmp_path / "m")
    before = tree(tmp_path / "m")
    path = bundles[2000].with_name(f"{bundles[2000].name}.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(HarnessError, match=r"is no zip, or a damaged one \(Bad CRC-32 .*; copy it again from where"):
        put(path, tmp_path / "m")
    assert tree(tmp_path / "m") == before


def test_a_damaged_first_bundle_leaves_nothing(tmp_path: Path, bundles: dict[int, Path]) -> None:
    flipped(bundles[1000])
    with pytest.raises(HarnessError, match="sha256 is"):
        put(bundles[1000], tmp_path / "m")
    assert tree(tmp_path / "m") == {}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            b"PK\x03\x04" + bytes(200),
            r"the Whisper slot takes a ggml file, but this begins with b'PK\\x03\\x04': it is a z",
        ),
        (b"GGUF" + bytes(200), "it is GGUF, which whisper.cpp does not read; export it with whisper_ggml"),
        (b"short", "it is no ggml file"),
        # A Parakeet whose manifest claims to be a Whisper.
        (
            b"\x08\x08\x12\x07pytorch" + bytes(200),
            r"begins with b'\\x08\\x08\\x12\\x07': it is no ggml file; export it",
        ),
    ],
)
def test_what_is_no_ggml(tmp_path: Path, model: bytes, message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        put(bundle(tmp_path / "b", model), tmp_path / "m")
    assert tree(tmp_path / "m") == {}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 40_000, "n_vocab 40000, which is none of Whisper's"),
        (2, -64, "n_audio_state -64, outside of 1 to 65536"),
        (4, 1000, "n_audio_layer 1000, outside of 1 to 128"),
        (9, 64, "n_mels 64 and filters of 80 x 201"),
        (9, 128, "n_mels 128 and filters of 80 x 201"),
        (10, 1 << 30, "ftype 1073741824, outside of 0 to 10000"),
    ],
)
def test_a_ggml_header_that_whisper_cpp_cannot_run(
    tmp_path: Path, models: dict[int, bytes], place: int, value: int, message: str
) -> None:
    model = bytearray(models[1000])
    model[4 + 4 * place : 8 + 4 * place] = value.to_bytes(4, "little", signed=True)
    with pytest.raises(HarnessError, match=message):
        put(bundle(tmp_path / "b", bytes(model)), tmp_path / "m")


def test_a_model_for_another_application(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="VoiceInk runs whisper_ggml, but this model is parakeet_onnx"):
        put(parakeet(tmp_path / "p"), tmp_path / "m", application="voiceink")


def test_a_parakeet_that_mimir_could_not_run(tmp_path: Path) -> None:
    with pytest.raises(
        HarnessError, match=r"it has 80 mel bands, and Mimir .* takes 128 for granted; fine-tune nvidia"
    ):
        put(parakeet(tmp_path / "p", mels=80), tmp_path / "m")
    assert put(parakeet(tmp_path / "p2", mels=80), tmp_path / "f", application="folder").is_new


def test_a_parakeet_without_its_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.promote.fitness.DECODERS", ("another.onnx",))
    with pytest.raises(
        HarnessError, match=r"looks for its decoder as another.onnx, but the bundle has only config.json"
    ):
        put(parakeet(tmp_path / "p"), tmp_path / "m")


def test_a_nemo_file_is_looked_through(tmp_path: Path) -> None:
    from harness.promote.bundle import write_bundle
    from tests.ggmls import content

    made = content(tmp_path / "e", {"model.nemo": b"no tar"}, kind="parakeet_nemo", serving={"kind": "nemo"})
    with pytest.raises(DataError, match="incoming"):
        put(write_bundle(made, folder=tmp_path / "b"), tmp_path / "m", listen=smoke.listen)


def test_no_room(tmp_path: Path, bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    with pytest.raises(HarnessError, match=r"m: 1 MiB free, 23 MiB needed; make room and try again"):
        put(bundles[1000], tmp_path / "m")


def test_a_disk_that_fills_up(tmp_path: Path, bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    put(bundles[1000], tmp_path / "m")
    before = tree(tmp_path / "m")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(payload, "sync", full)
    with pytest.raises(HarnessError, match="m: the disk is full; nothing has changed: make room and try again"):
        put(bundles[2000], tmp_path / "m")
    assert tree(tmp_path / "m") == before


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bundles[1000], tmp_path / "m")
    before = tree(tmp_path / "m")

    def refuse(_source: Path, _target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(_target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(
        HarnessError, match=r"m: cannot be written \(Permission denied: .*; nothing has changed: if an app"
    ):
        put(bundles[2000], tmp_path / "m")
    monkeypatch.undo()
    assert {name: data for name, data in tree(tmp_path / "m").items() if ".tmp" not in name} == before


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="there, or for root, it can be written")
def test_a_read_only_folder(tmp_path: Path, bundles: dict[int, Path]) -> None:
    (tmp_path / "m").mkdir(mode=0o555)
    with pytest.raises(HarnessError, match=r"m: cannot be written \(Permission denied: .*; nothing has changed"):
        put(bundles[1000], tmp_path / "m")
    assert list((tmp_path / "m").iterdir()) == []


def test_the_target_is_a_file(tmp_path: Path, bundles: dict[int, Path]) -> None:
    (tmp_path / "m").write_text("", encoding="utf-8")
    with pytest.raises(SuiteError, match="m: is a file, or lies under one; give a folder: --to DIR"):
        put(bundles[1000], tmp_path / "m")


def test_a_folder_lies_where_the_file_belongs(tmp_path: Path, bundles: dict[int, Path]) -> None:
    (tmp_path / "m" / NAME).mkdir(parents=True)
    with pytest.raises(HarnessError, match="is a folder where a file belongs; move it away and try again"):
        put(bundles[1000], tmp_path / "m")


def test_two_at_once(tmp_path: Path, bundles: dict[int, Path]) -> None:
    def meanwhile(_payload: Path, /, *, manifest: Manifest, clip: Path) -> str | None:
        with pytest.raises(HarnessError, match="another install or rollback is at work here; wait until it has ended"):
            put(bundles[2000], tmp_path / "m")
        return trust(_payload, manifest=manifest, clip=clip)

    assert put(bundles[1000], tmp_path / "m", listen=meanwhile).record["manifest"]["name"] == "row1000"


def test_an_interrupted_copy_goes_on(
    tmp_path: Path, bundles: dict[int, Path], models: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "m", NAME)
    place.home.mkdir(parents=True)
    place.incoming.write_bytes(models[1000][:5_000_000])
    read_from: list[int] = []
    whole = payload._append

    def watched(*arguments: Any, begun: int) -> str:
        read_from.append(begun)
        return whole(*arguments, begun=begun)

    monkeypatch.setattr(payload, "_append", watched)
    put(bundles[1000].with_name(f"{bundles[1000].name}.zip"), tmp_path / "m")
    assert read_from == [5_000_000]
    assert place.live.read_bytes() == models[1000]
    # What is no beginning of it is copied anew.
    place.incoming.write_bytes(models[3000][:5_000_000])
    put(bundles[2000], tmp_path / "m")
    assert read_from == [5_000_000, 5_000_000, 0]
    assert place.live.read_bytes() == models[2000]


def test_a_bundle_is_read_once(tmp_path: Path, bundles: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes: dict[str, int] = {}
    with opened(bundles[1000]) as parcel:
        real = type(parcel.files).open

        def counted(files: Any, name: str) -> Any:
            read_bytes[name] = read_bytes.get(name, 0) + 1
            return real(files, name)

        monkeypatch.setattr(type(parcel.files), "open", counted)
        install(parcel, target=MIMIR, folder=tmp_path / "m", listen=trust)
    assert read_bytes == {"ggml-model.bin": 1, "README.txt": 1, "smoke.wav": 1}


def test_a_damaged_state_is_one_message(tmp_path: Path, bundles: dict[int, Path]) -> None:
    put(bundles[1000], tmp_path / "m")
    Place(tmp_path / "m", NAME).state.write_text("{", encoding="utf-8")
    with pytest.raises(
        HarnessError, match=r"state.json: cannot be read .*; the model itself may be sound: move .* away"
    ):
        put(bundles[2000], tmp_path / "m")


def test_forced_is_remembered(tmp_path: Path, models: dict[int, bytes]) -> None:
    put(bundle(tmp_path / "b", models[1000], forced="the boss wants it"), tmp_path / "m")
    (found,) = status(MIMIR, folder=tmp_path / "m")
    assert found.record is not None
    assert found.record["manifest"]["forced"] == "the boss wants it"
    assert read(tmp_path / "m" / ".harness" / "history.jsonl")[0]["reason"] == "FORCED past the gate: the boss wants it"
    state = json.loads(Place(tmp_path / "m", NAME).state.read_text("utf-8"))
    assert state["current"]["manifest"]["forced"] == "the boss wants it"


def test_serving_that_is_not_sound(tmp_path: Path, models: dict[int, bytes]) -> None:
    made = bundle(tmp_path / "b", models[1000], serving={"kind": "whispercpp", "beam_size": 99})
    with pytest.raises(HarnessError, match="its manifest's `serving` is not sound: Input should be less than or equal"):
        put(made, tmp_path / "m", listen=smoke.listen)


def test_smoke_distance_is_levenshteins() -> None:
    for one, other, expected in (("", "a b", 2), ("a b c", "", 3), ("a b c", "a x c", 1), ("a b c", "b c d", 2)):
        assert smoke.distance(one.split(), other.split()) == expected


def test_moves_within_one_file_system_only(tmp_path: Path) -> None:
    place = Place(tmp_path, NAME)
    assert {path.parent for path in (place.incoming, place.outgoing, place.previous)} == {tmp_path / ".harness" / NAME}
    assert installing.HOME == swap.HOME
    shutil.rmtree(tmp_path)
