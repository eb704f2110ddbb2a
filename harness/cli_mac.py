"""The commands of the machine where models run: install, rollback, status, bench. Without torch, NeMo and MLflow."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.console import err, out, say
from harness.errors import HarnessError, SuiteError

if TYPE_CHECKING:
    from harness.promote.install import Installed, Status

mac = typer.Typer()
FORCED = "bold yellow"

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder or .zip that `harness promote` wrote.")]
TargetName = Annotated[str, typer.Option("--target", help="mimir, handy, voiceink or folder.")]
Folder = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Rather than the application's own folder.")]


class Device(StrEnum):
    """Where `bench` runs a model."""

    auto = "auto"
    cpu = "cpu"
    metal = "metal"
    coreml = "coreml"
    cuda = "cuda"


@mac.command()
def install(bundle: BundlePath, target: TargetName = "mimir", to: Folder = None) -> None:
    """Verify a bundle, try its model out, and put it where the application finds it."""
    from harness.promote import install as installing
    from harness.promote import targets
    from harness.promote.parcel import opened

    chosen = targets.target(target)
    with opened(bundle.expanduser()) as parcel:
        if parcel.manifest.non_commercial:
            say(f"not for commercial use: {', '.join(parcel.manifest.non_commercial)}", style="yellow")
        found = installing.install(parcel, target=chosen, folder=_folder(to) or chosen.default_folder())
    tell_installed(found, application=chosen.title)


@mac.command()
def rollback(
    target: TargetName = "mimir",
    to: Folder = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The file or folder to bring back, where there are several.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Goes into the history.")] = "",
) -> None:
    """Bring the previous model back, verified like a new one."""
    from harness.promote import install as installing
    from harness.promote import targets

    chosen = targets.target(target)
    folder = _folder(to) or chosen.default_folder()
    places = [place for place in installing.places(chosen, folder=folder) if name in {None, place.name}]
    if not places:
        raise HarnessError(f"{folder}: there is no previous {name or 'model'} to go back to")
    if len(places) > 1:
        names = " or ".join(place.name for place in places)
        raise SuiteError(f"{folder}: several models have a previous one; say which: --name {names}")
    tell_installed(installing.rollback(places[0], target=chosen, reason=reason), application=chosen.title)


@mac.command()
def status(target: TargetName = "mimir", to: Folder = None) -> None:
    """Say which models are installed, since when, on whose authority, and whether their files are still whole."""
    from harness.promote import install as installing
    from harness.promote import targets

    chosen = targets.target(target)
    folder = _folder(to) or chosen.default_folder()
    found = installing.status(chosen, folder=folder)
    if not found:
        say(f"{folder}: no model is installed for {chosen.title}")
    for item in found:
        _tell_status(item)
    damaged = [item.path for item in found if item.record and item.faults]
    if damaged:
        raise HarnessError(
            f"{damaged[0]}: not as it was installed; install its bundle again, or go back: harness rollback"
        )


@mac.command()
def bench(
    bundle: BundlePath,
    audio: Annotated[
        Path | None, typer.Option("--audio", metavar="DIR|MANIFEST", help="Recordings; without: the bundle's one clip.")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="auto: as the application runs it.")] = Device.auto,
    host: Annotated[str | None, typer.Option("--host", help="What to call this machine.")] = None,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where bench-<host>.json goes.")] = Path(),
) -> None:
    """Measure a bundle's model on this machine: load time, RTF, latency, memory."""
    from harness.board.devices import write
    from harness.promote import bench as benching
    from harness.promote.parcel import opened

    with opened(bundle.expanduser()) as parcel, benching.unpacked(parcel) as home:
        clips = benching.sounds(_folder(audio), smoke=home / "smoke.wav")
        found = benching.measure(parcel, home=home, clips=clips, device=device.value, host=host)
    path = folder.expanduser() / f"bench-{found.host}.json"
    write(path, [found])
    if parcel.manifest.forced:
        say(parcel.manifest.authority, style=FORCED)
    say(f"{found.row} on {found.host} ({found.device}, {found.runtime}), {found.num_clips} clips:")
    _tell_speed("all", found.model_dump())
    for bucket in found.buckets:
        upper = f" to {bucket['to_s']:g} s" if bucket["to_s"] else " s and more"
        _tell_speed(f"{bucket['from_s']:g}{upper}", bucket)
    say(f"  loading {found.load_s:.2f} s, first clip {found.warm_up_s:.2f} s, RAM {found.peak_ram_mib:.0f} MiB at most")
    if found.num_failed:
        err.print(f"  {found.num_failed} of {found.num_clips} clips failed", style="red", markup=False)
    say(f"written: {path}; where the suite is: harness board SUITE --merge {path.name}")


def tell_installed(found: Installed, *, application: str) -> None:
    """What an installation or a rollback did."""
    state = "installed:" if found.is_new else "unchanged:"
    say(f"{state} {found.path}: {found.record['bundle']}")
    if found.record.get("heard") is not None and found.is_new:
        say(f'heard:     "{found.record["heard"]}"')
    _tell_forced(found.record)
    if found.previous:
        say(f"previous:  {found.previous['bundle']} (harness rollback brings it back)")
        _tell_forced(found.previous)
    if found.is_new and application != "a folder":
        say(f"restart {application} to use it")


def _folder(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser()


def _tell_status(item: Status) -> None:
    if item.record is None:
        say(f"{item.path}: was not installed by harness" if item.path.exists() else f"{item.path}: empty")
    else:
        record = item.record
        whole = "its files are as they were installed" if not item.faults else f"DAMAGED: {'; '.join(item.faults)}"
        say(f"{item.path}\n  {record['bundle']}")
        say(f"  since {record['installed_at'][:19]} UTC, by {record['installed_by'] or '?'}")
        say(f"  authority: {_authority(record)}", style=FORCED if _forced(record) else "")
        say(f"  {whole}", style="bold red" if item.faults else "")
    if item.previous:
        whole = "whole" if not item.previous_faults else f"DAMAGED: {'; '.join(item.previous_faults)}"
        say(f"  previous: {item.previous['bundle']}, {whole}")
        _tell_forced(item.previous)


def _tell_forced(record: dict[str, Any]) -> None:
    if _forced(record):
        say(f"  {_authority(record)}", style=FORCED)


def _forced(record: dict[str, Any]) -> bool:
    return bool(record["manifest"] and record["manifest"]["forced"])


def _authority(record: dict[str, Any]) -> str:
    from harness.promote.manifest import Manifest

    return Manifest.model_validate(record["manifest"]).authority if record["manifest"] else "none: not from a bundle"


def _tell_speed(what: str, figures: dict[str, Any]) -> None:
    parts = [
        f"{name} {figures[key]:.{digits}f}{unit}"
        for name, key, digits, unit in (
            ("RTF", "rtf", 3, ""),
            ("p50", "latency_p50_ms", 0, " ms"),
            ("p95", "latency_p95_ms", 0, " ms"),
        )
        if figures[key] is not None
    ]
    out.print(f"  {what:<10} {figures['num_clips']:>5} clips  {'  '.join(parts)}", markup=False, highlight=False)
