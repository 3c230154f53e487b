"""runtime/bundle_format/bundle.py: verified before use, written whole or not at all."""

import dataclasses
import errno
import json
import os
import shutil

import pytest
from reuse_distill.runtime.bundle_format.bundle import (
    MANIFEST,
    file_sha256,
    list_files,
    read_bundle,
    write_bundle,
    write_manifest,
)
from reuse_distill.runtime.bundle_format.manifest import FileEntry
from reuse_distill.runtime.errors import RdError


@pytest.fixture
def bundle(toys, tmp_path):
    shutil.copytree(toys.streaming, tmp_path / "bundle")
    return tmp_path / "bundle"


def edited(bundle, change):
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(data))
    return bundle


def test_a_bundle_is_read_back(bundle):
    found = read_bundle(bundle)
    assert found.artifact == bundle / "model.onnx"
    assert found.manifest.kind == "streaming"
    assert found.manifest.files["model.onnx"] == FileEntry(
        file_sha256(bundle / "model.onnx"), (bundle / "model.onnx").stat().st_size
    )
    assert read_bundle(str(bundle)) == found


def test_a_manifest_survives_being_written(bundle):
    manifest = read_bundle(bundle).manifest
    write_manifest(bundle, manifest)
    assert read_bundle(bundle).manifest == manifest


@pytest.mark.parametrize("name", ["model.onnx", "selftest.npz"])
def test_every_flipped_bit_of_every_file_is_found(bundle, name):
    whole = (bundle / name).read_bytes()
    for at in range(0, 8 * len(whole), 8 * len(whole) // 23 - 1):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        (bundle / name).write_bytes(data)
        with pytest.raises(RdError, match=rf"{name}: sha256"):
            read_bundle(bundle)


def test_missing_and_cut_files_are_found(bundle):
    path = bundle / "model.onnx"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RdError, match=rf"model.onnx: {size - 1} bytes, the manifest says {size}"):
        read_bundle(bundle)
    path.unlink()
    with pytest.raises(RdError, match=r"model.onnx is missing\n\nhint: .*copy or export it again"):
        read_bundle(bundle)


def test_what_is_not_a_bundle(tmp_path):
    with pytest.raises(RdError, match=r"not a bundle, there is no manifest.json\n\nhint: rd-export writes"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\x00", "not json"])
def test_manifests_that_are_no_json(bundle, text):
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(RdError, match="not valid JSON"):
        read_bundle(bundle)
    (bundle / MANIFEST).write_bytes(b"\xff\xfe{")
    with pytest.raises(RdError, match="not valid JSON"):
        read_bundle(bundle)


CHANGES = {
    "unknown key": (lambda m: m.update(chunks=1), "unknown key 'chunks'"),
    "nearest name": (lambda m: m.update(artefact="x"), "did you mean 'artifact'"),
    "missing key": (lambda m: m.pop("kind"), "missing key 'kind'"),
    "other kind": (lambda m: m.update(kind="online"), "kind 'online' is not one of offline, window, streaming"),
    "other status": (lambda m: m.update(status="done"), "status 'done'"),
    "other schema": (lambda m: m.update(schema_version=2), "schema version 2, this runtime reads 1"),
    "other rate": (lambda m: m.update(sample_rate_hz=8000), "sample_rate_hz is 8000, this runtime supports 16000"),
    "text for a number": (lambda m: m["geometry"].update(chunk_frames="4"), "chunk_frames: expected int, found str"),
    "true for a number": (lambda m: m["geometry"].update(chunk_frames=True), "chunk_frames: expected int, found bool"),
    "a number for a list": (lambda m: m.update(layers=3), "layers: expected list, found int"),
    "other update": (lambda m: m["states"][0].update(update="add"), "update 'add' is not one of replace, append"),
    "artifact not listed": (lambda m: m.update(artifact="other.onnx"), "artifact 'other.onnx' is not among the files"),
    "a list": (lambda m: m.update(geometry=[1]), "geometry: expected an object with keys, found list"),
}


@pytest.mark.parametrize(("change", "text"), CHANGES.values(), ids=CHANGES)
def test_manifests_that_are_wrong(bundle, change, text):
    with pytest.raises(RdError) as error:
        read_bundle(edited(bundle, change))
    assert text in str(error.value)
    assert "manifest" in str(error.value)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_files_outside_are_not_read(bundle, name):
    (bundle.parent / "outside").write_text("x")
    entry = {"sha256": file_sha256(bundle.parent / "outside"), "size_bytes": 1}
    with pytest.raises(RdError, match="is outside the bundle"):
        read_bundle(edited(bundle, lambda m: m["files"].update({name: entry})))


def test_links_that_lead_out_are_not_followed(bundle):
    outside = bundle.parent / "outside.onnx"
    (bundle / "model.onnx").rename(outside)
    (bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(RdError, match="is outside the bundle"):
        read_bundle(bundle)


def test_an_artifact_that_is_not_listed_cannot_lead_out(bundle):
    with pytest.raises(RdError, match="is not among the files"):
        read_bundle(edited(bundle, lambda m: m.update(artifact="../outside")))


def test_an_error_leaves_no_half_bundle(tmp_path):
    with pytest.raises(ValueError, match="in the middle"), write_bundle(tmp_path / "new") as folder:
        (folder / "model.onnx").write_bytes(b"x")
        raise ValueError("in the middle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG])
def test_errors_of_the_disk_are_told(bundle, code):
    before = sorted((p.name, p.read_bytes()) for p in bundle.iterdir())
    text = r"bundle: could not be written \(.*\)\n\nhint: free some disk space"
    with pytest.raises(RdError, match=text), write_bundle(bundle, overwrite=True) as folder:
        (folder / "model.onnx").write_bytes(b"x")
        raise OSError(code, os.strerror(code))
    assert sorted((p.name, p.read_bytes()) for p in bundle.iterdir()) == before
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_other_errors_pass(tmp_path):
    """A missing calibration file is not a full disk."""
    with pytest.raises(FileNotFoundError), write_bundle(tmp_path / "new"):
        (tmp_path / "none").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_overwritten_only_on_request(bundle):
    with pytest.raises(RdError, match=r"exists already\n\nhint: .*--overwrite"), write_bundle(bundle):
        pass
    manifest = read_bundle(bundle).manifest
    with write_bundle(bundle, overwrite=True) as folder:
        (folder / "model.onnx").write_bytes(b"new")
        (folder / "selftest.npz").write_bytes(b"new")
        write_manifest(folder, dataclasses.replace(manifest, files=list_files(folder)))
    assert read_bundle(bundle).artifact.read_bytes() == b"new"
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]
    assert bundle.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_is_no_bundle_is_never_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    with (
        pytest.raises(RdError, match="exists and is not a bundle; it is not overwritten"),
        write_bundle(tmp_path / "photos", overwrite=True),
    ):
        pass
    assert (tmp_path / "photos" / "me.jpg").exists()


def test_manifest_and_certificate_are_not_among_the_files(bundle):
    (bundle / "certificate.json").write_text("{}")
    (bundle / "more").mkdir()
    (bundle / "more" / "a.txt").write_text("a")
    assert list(list_files(bundle)) == ["model.onnx", "more/a.txt", "selftest.npz"]
