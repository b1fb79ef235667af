"""The cache of assets: built once, held against its manifest, checked byte by byte on request."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from robustpo_kit import paths
from robustpo_kit.assets import table
from robustpo_kit.assets.models import dequantise, from_hub, from_hub_cache
from robustpo_kit.assets.table import MEND, Asset
from robustpo_kit.assets.wheels import extract
from robustpo_kit.errors import KitError
from robustpo_kit.records import atomic_folder, file_digest, write_json

MANIFEST = "manifest.json"


class StoredFile(TypedDict):
    """What the manifest says of one file."""

    bytes: int
    sha256: str


def resolve(name: str) -> Path:
    """Local path of an asset, a local folder or a Hub id.

    Returns:
        A file for texts, a Hugging Face folder for models.

    Raises:
        KitError: says which asset is missing or corrupt, why, and the command that mends it.
    """
    if name in table.ASSETS:
        return _resolve_asset(table.ASSETS[name])
    if Path(name).exists():
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return from_hub(name)
    known = ", ".join(table.ASSETS)
    raise KitError(
        f"asset '{name}': neither a known asset ({known}) nor a local path nor a Hub id "
        "(owner/name)"
    )


def local(name: str) -> Path | None:
    """The folder of a model as `resolve` takes it, where it is on this machine; fetches nothing."""
    if name in table.ASSETS:
        folder = _folder(table.ASSETS[name])
        return folder if (folder / MANIFEST).exists() else None
    if Path(name).exists():
        return Path(name)
    return from_hub_cache(name)


def fetch(names: Sequence[str] | None = None) -> None:
    """Resolve assets (None: all), download what is missing, build again what is corrupt."""
    for name in table.ASSETS if names is None else names:
        state, _ = _check(table.ASSETS[name])
        if state == "corrupt":
            shutil.rmtree(_folder(table.ASSETS[name]), ignore_errors=True)
        resolve(name)


def status() -> list[dict[str, str]]:
    """One row an asset, after a check of every sha256.

    Returns:
        Rows of asset, state (ok | missing | corrupt), wheel, licence, detail, mend (what to do).
    """
    rows = []
    for asset in table.ASSETS.values():
        state, detail = _check(asset)
        rows.append(
            {
                "asset": asset.name,
                "state": state,
                "wheel": f"{asset.distribution}=={asset.version}",
                "licence": asset.licence,
                "detail": detail,
                "mend": "" if state == "ok" else MEND,
            }
        )
    return rows


def _folder(asset: Asset) -> Path:
    return paths.CACHE / "assets" / f"{asset.name}-{asset.version}"


def _stored_files(folder: Path) -> dict[str, StoredFile] | None:
    """The files that the manifest lists; None where it is damaged."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError):
        return None


def _check(asset: Asset) -> tuple[str, str]:
    """State of the cached copy and what it is read from, every byte read."""
    folder = _folder(asset)
    if not (folder / MANIFEST).exists():
        return "missing", "not in the cache"
    files = _stored_files(folder)
    if files is None:
        return "corrupt", f"{MANIFEST} is damaged"
    for file, stored in files.items():
        path = folder / file
        if not path.exists():
            return "corrupt", f"{file} is gone"
        if path.stat().st_size != stored["bytes"] or file_digest(path) != stored["sha256"]:
            return "corrupt", f"{file} differs from its sha256"
    total = sum(stored["bytes"] for stored in files.values())
    return "ok", f"{total / 1e6:.0f} MB"


def _resolve_asset(asset: Asset) -> Path:
    folder = _folder(asset)
    if not (folder / MANIFEST).exists():
        _build(asset, folder)
    files = _stored_files(folder)
    if files is None:
        raise KitError(f"asset '{asset.name}': {MANIFEST} in the cache is damaged; run `{MEND}`")
    for file, stored in files.items():
        path = folder / file
        if not path.exists() or path.stat().st_size != stored["bytes"]:
            raise KitError(
                f"asset '{asset.name}': {file} in the cache is missing or truncated; run `{MEND}`"
            )
    if asset.kind == "text":
        return folder / next(iter(files))
    return folder


def _build(asset: Asset, folder: Path) -> None:
    """Extract (and dequantise) the asset into its folder, with a manifest."""
    with contextlib.suppress(FileExistsError), atomic_folder(folder) as made:
        extract(asset, made)
        if asset.kind == "gguf":
            dequantise(made)
        files = {}
        for path in sorted(made.iterdir()):
            files[path.name] = StoredFile(bytes=path.stat().st_size, sha256=file_digest(path))
        source = f"{asset.distribution}=={asset.version}"
        write_json(made / MANIFEST, {"asset": asset.name, "source": source, "files": files})
        if (folder / MANIFEST).exists():
            # another process was faster: its files are the same, and may be read at this moment
            raise FileExistsError(folder)
    if not (folder / MANIFEST).exists():
        raise KitError(f"asset '{asset.name}': could not be placed in the cache; run `{MEND}`")
