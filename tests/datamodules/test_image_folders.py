"""Folders of image files: formats, limits, and paths that are not regular files."""

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from datamodules.image_sources import FORMATS, MAX_FILE_BYTES, MAX_PIXELS, folder_images
from rbp_lightning import UserError
from tests.images import saved, with_checksums
from tests.limits import MIB, NO_FILES, bounded, make_no_file

Image.init()
# MPO is JPEG with several images; the other four are formats that Pillow only identifies.
OTHERS = sorted(set(Image.SAVE) - {*FORMATS, "MPO", "BUFR", "GRIB", "HDF5", "WMF"})


@pytest.mark.parametrize("kind", FORMATS)
def test_allowed_formats_are_read_whatever_the_file_name(tmp_path, kind) -> None:
    Image.new("L", (20, 10), 255).save(tmp_path / "image", format=kind)
    assert folder_images(str(tmp_path), 1, 4).tolist() == [[[1.0] * 4] * 4]


def test_the_first_of_several_images_in_a_file_is_read(tmp_path) -> None:
    first, second = Image.new("L", (6, 6), 255), Image.new("L", (6, 6), 0)
    for name in ("a.gif", "b.tiff", "c.mpo"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    assert folder_images(str(tmp_path), 3, 6).min() > 0.99


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A path that exists if a fake Ghostscript was run."""
    (tmp_path / "bin").mkdir()
    program, ran = tmp_path / "bin" / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # Pillow caches the path
    return ran


def saved_in_any_mode(kind: str) -> bytes:
    for mode in ("RGB", "L", "1", "P"):
        with suppress(OSError, ValueError):  # the format does not support the mode
            return saved(kind, 16, 16, mode)
    raise AssertionError(f"Pillow cannot write {kind}")


@pytest.mark.filterwarnings("ignore:IM image format is deprecated")
@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_refused_and_run_no_program(tmp_path, ghostscript, kind) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "image.png"
    path.write_bytes(saved_in_any_mode(kind))
    with pytest.raises(UserError, match=str(path)):
        folder_images(str(path.parent), 1, 8)
    assert not ghostscript.exists()


def test_pillow_itself_would_run_ghostscript(tmp_path, ghostscript) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "image.eps")
    with pytest.raises(OSError, match="image"), Image.open(tmp_path / "image.eps") as image:
        image.load()
    assert ghostscript.exists()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (5_794, 5_794), (65_000, 600), (600, 65_000)])
def test_more_pixels_than_the_limit_are_refused_by_the_header(tmp_path, kind, width, height) -> None:
    assert width * height > MAX_PIXELS
    content, order = saved(kind, 300, 200), ">" if kind in ("PNG", "JPEG") else "<"
    for given, written in ((300, width), (200, height)):
        size = {"PNG": "I", "JPEG": "H", "GIF": "H", "BMP": "I", "TIFF": "I"}[kind]
        content = content.replace(struct.pack(order + size, given), struct.pack(order + size, written))
    (tmp_path / "a.png").write_bytes(with_checksums(content) if kind == "PNG" else content)
    with bounded(50, 5), pytest.raises(UserError, match=rf"a\.png .*{MAX_PIXELS} pixels"):
        folder_images(str(tmp_path), 1, 8)


def test_a_small_file_with_very_many_pixels_takes_no_memory(tmp_path) -> None:
    rows = zlib.compress(bytes(8_001 * 8_000), 1)  # black
    small = saved("PNG", 1, 1)
    start, end = small.index(b"IHDR"), small.index(b"IDAT")
    header = small[: start + 4] + struct.pack(">II", 8_000, 8_000) + small[start + 12 : end - 4]
    content = header + len(rows).to_bytes(4, "big") + b"IDAT" + rows + bytes(4) + bytes(4) + b"IEND" + bytes(4)
    (tmp_path / "a.png").write_bytes(with_checksums(content))
    assert (tmp_path / "a.png").stat().st_size < 400_000
    with bounded(50, 5), pytest.raises(UserError, match=rf"a\.png .*{MAX_PIXELS} pixels"):
        folder_images(str(tmp_path), 1, 8)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_within_the_limit_is_read_in_bounded_memory(tmp_path, kind) -> None:
    (tmp_path / "a").write_bytes(saved(kind, 2_000, 2_000, mode="P" if kind == "GIF" else "RGB"))
    with bounded(13 * 2_000**2 // MIB, 5):
        assert folder_images(str(tmp_path), 1, 8).shape == (1, 8, 8)


def test_a_large_file_is_refused_unread(tmp_path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with bounded(2 * MAX_FILE_BYTES // MIB, 5), pytest.raises(UserError, match=rf"a\.png .* {MAX_FILE_BYTES} bytes"):
        folder_images(str(tmp_path), 1, 8)


def test_resizing_many_images_to_a_large_size_is_refused(tmp_path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(saved("PNG", 1, 1))
    with bounded(10, 5), pytest.raises(UserError, match="size=4096 "):
        folder_images(str(tmp_path), 20, 4096)


@pytest.mark.parametrize("kind", NO_FILES)
def test_paths_that_are_not_regular_files_are_refused_at_once(tmp_path, kind) -> None:
    make_no_file(tmp_path / "a.png", kind)
    with bounded(10, 5), pytest.raises(UserError, match=r"a\.png"):
        folder_images(str(tmp_path), 1, 8)


def test_subfolders_and_hidden_files_are_skipped(tmp_path) -> None:
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "2026.10").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"no image")
    (tmp_path / "z.png").write_bytes(saved("PNG", 6, 6))
    assert len(folder_images(str(tmp_path), 1, 8)) == 1


def test_damaged_exif_data_cause_no_warning(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.new("L", (6, 6), 255).save(tmp_path / "a.jpg", exif=exif.tobytes()[:-3])
    assert folder_images(str(tmp_path), 1, 6).min() > 0.99
