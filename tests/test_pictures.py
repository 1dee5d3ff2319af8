import inspect
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.kitchen import declare, put, read, read_lines
from utils import pictures, readers
from utils.pictures import PictureError


def decode(path: Path, channels: int = 3) -> np.ndarray:
    return pictures.decode(str(path), 32, 20, channels)


def cache_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.32x20x3.digits.npz"


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp"])
def test_colours_are_rgb_and_grey_is_weighted(tmp_path, extension):
    path = put(tmp_path / f"a.{extension}", (255, 0, 0))
    assert np.abs(decode(path).astype(int) - [255, 0, 0]).max() <= 3
    grey = decode(path, channels=1)
    assert grey.shape == (32, 20, 1)
    assert np.abs(grey.astype(int) - 76).max() <= 2


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, [100, 100, 100]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("LA", (50, 255), [50, 50, 50]),
        ("I;16", 257 * 200, [200, 200, 200]),
        ("I;16", 65535, [255, 255, 255]),
        ("1", 1, [255, 255, 255]),
    ],
)
def test_kinds_of_pixels(tmp_path, mode, colour, expected):
    assert decode(put(tmp_path / "a.png", colour, mode=mode))[5, 5].tolist() == expected


def test_palettes_with_transparency(tmp_path):
    picture = Image.new("RGBA", (24, 43), (10, 200, 30, 255)).convert("P", palette=Image.Palette.ADAPTIVE)
    picture.save(tmp_path / "a.png", transparency=bytes([255] * 4))
    assert decode(tmp_path / "a.png")[5, 5].tolist() == [10, 200, 30]


def test_shrinking_averages_and_enlarging_interpolates(tmp_path):
    checks = np.indices((128, 80)).sum(0).astype(np.uint8) % 2 * 255
    Image.fromarray(checks).save(tmp_path / "large.png")
    assert np.abs(decode(tmp_path / "large.png").astype(int) - 127).max() <= 1
    ramp = np.repeat(np.array([[0, 200]], np.uint8), 4, axis=0).repeat(2, axis=1)
    Image.fromarray(ramp).save(tmp_path / "small.png")
    assert len(np.unique(decode(tmp_path / "small.png"))) > 4


def test_a_picture_that_was_stored_lying_is_read_as_viewers_show_it(tmp_path):
    shown = np.zeros((43, 24, 3), np.uint8)
    shown[:9] = 255
    Image.fromarray(shown).save(tmp_path / "upright.png")
    upright = decode(tmp_path / "upright.png")
    for orientation, stored in {6: np.rot90(shown), 8: np.rot90(shown, -1), 3: np.rot90(shown, 2), 1: shown}.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for suffix in ("png", "webp"):
            file = tmp_path / f"{orientation}.{suffix}"
            Image.fromarray(stored).save(file, exif=exif, lossless=True)
            assert np.array_equal(decode(file), upright)
            assert pictures.size(str(file)) == (24, 43)


def test_a_damaged_note_of_the_orientation_makes_no_damaged_picture(tmp_path):
    Image.new("RGB", (24, 43), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0no TIFF")
    assert decode(tmp_path / "a.jpg")[0, 0, 0] > 250
    assert pictures.size(str(tmp_path / "a.jpg")) in ((24, 43), None)


def truncated_jpeg() -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (43, 24, 3), np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()[:-60]


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


BROKEN = {
    "truncated": (truncated_jpeg(), "damaged picture"),
    "bomb": (bomb(), "unusable size"),
    "empty": (b"", "damaged picture"),
    "text": (b"not a picture", "damaged picture"),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_broken_pictures_are_refused(tmp_path, kind):
    content, reason = BROKEN[kind]
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PictureError, match=reason):
        decode(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(3, 40), (40, 3), (4097, 4), (4, 4097)])
def test_sizes_nobody_can_use(tmp_path, size):
    with pytest.raises(PictureError) as error:
        decode(put(tmp_path / "a.png", size=size))
    assert error.value.args == ("unusable size", f"{size[0]}x{size[1]} pixels; each side needs 4 to 4096")


def test_limits_of_size_are_accepted(tmp_path):
    assert decode(put(tmp_path / "a.png", size=(4, 4096))).shape == (32, 20, 3)


def test_files_of_absurd_length_are_not_read(tmp_path):
    os.truncate(put(tmp_path / "a.bmp"), pictures.MAX_FILE_BYTES + 1)
    with pytest.raises(PictureError) as error:
        decode(tmp_path / "a.bmp")
    assert error.value.args == ("unusable size", "the file is larger than 128 MiB")


@pytest.fixture
def no_decoding(monkeypatch):
    """After a call, any decoding fails."""

    def forbid() -> None:
        monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("decoded instead of using the cache"))

    return forbid


def test_second_read_uses_the_cache(folder, no_decoding, user_cache):
    put(folder / "3.4_a.jpg", (200, 10, 10))
    first = read(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".kitchen.32x20x3.digits.npz", "kitchen"]
    assert not user_cache.exists()
    no_decoding()
    assert np.array_equal(read(folder).images, first.images)


def change(folder: Path) -> None:
    put(folder / "3.4_a.png", (1, 2, 3), size=(30, 50))


def touch(folder: Path) -> None:
    put(folder / "3.4_a.png", (1, 2, 3))
    os.utime(folder / "3.4_a.png", ns=(5, 5))


def rename(folder: Path) -> None:
    (folder / "3.4_a.png").rename(folder / "1.0_a.png")


def exchange(folder: Path) -> None:
    one, other = folder / "3.4_a.png", folder / "7.0_b.png"
    other.rename(folder / "between")
    one.rename(other)
    (folder / "between").rename(one)


@pytest.mark.parametrize(
    "edit", [change, touch, rename, exchange, lambda f: put(f / "0.0_new.png"), lambda f: (f / "7.0_b.png").unlink()]
)
def test_cache_notices_edits(folder, edit):
    put(folder / "3.4_a.png")
    put(folder / "7.0_b.png", (250, 250, 250))
    for path in folder.iterdir():
        # As unpacked from an archive: the same size, and the same second.
        path.write_bytes(path.read_bytes().ljust(200, b"\0"))
        os.utime(path, (1, 1))
    read(folder)
    edit(folder)
    after = read(folder)
    cache_of(folder).unlink()
    fresh = read(folder)
    assert after.files == fresh.files
    assert np.array_equal(after.images, fresh.images)


def test_cache_keeps_sizes_and_channels_apart(folder):
    put(folder / "3.4_a.png")
    assert readers.read(declare(folder), 48, 24, 3, 100, 0).images.shape == (1, 48, 24, 3)
    assert read(folder).images.shape == (1, 32, 20, 3)
    assert read(folder, channels=1).images.shape == (1, 32, 20, 1)


def test_cache_is_not_mixed_up_between_types_of_one_folder(folder):
    put(folder / "3.4_a.png", (255, 255, 255))
    put(folder / "1.0_b.png", (0, 0, 0))
    assert read(folder).images[:, 0, 0, 0].tolist() == [0, 255]
    assert read_lines(folder, "3.4_a.png 9.9\n").images[:, 0, 0, 0].tolist() == [255]
    assert read_lines(folder, "3.4_a.png 9.9\n1.0_b.png 9.8\n").images[:, 0, 0, 0].tolist() == [255, 0]


def test_changed_labels_need_no_new_decoding(folder, no_decoding):
    put(folder / "a.png")
    read_lines(folder, "a.png 3.4")
    no_decoding()
    assert read_lines(folder, "a.png 3.5").tenths.tolist() == [35]


@pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped", "foreign", "pickle"])
def test_damaged_caches_are_rebuilt(folder, damage, no_decoding):
    put(folder / "3.4_a.png", (200, 10, 10))
    expected = read(folder).images
    cache, content = cache_of(folder), cache_of(folder).read_bytes()
    pixels = content.index(expected.tobytes()) + 7
    flipped = content[:pixels] + bytes([content[pixels] ^ 255]) + content[pixels + 1 :]
    raw = {"empty": b"", "text": b"hello", "half": content[: len(content) // 2], "flipped": flipped}
    if damage in raw:
        cache.write_bytes(raw[damage])
    else:
        np.savez(cache, **({"other": np.zeros(3)} if damage == "foreign" else {"key": np.array([{}], object)}))
    assert np.array_equal(read(folder).images, expected)
    no_decoding()
    assert np.array_equal(read(folder).images, expected)


@pytest.mark.parametrize("images", [np.zeros((1, 32, 20, 1), np.uint8), np.zeros((1, 32, 20, 3), np.float32)])
def test_caches_with_the_right_key_and_other_content_are_rebuilt(folder, images):
    put(folder / "3.4_a.png", (200, 10, 10))
    expected = read(folder).images
    with np.load(cache_of(folder)) as stored:
        content = dict(stored)
    np.savez(cache_of(folder), **{**content, "images": images})
    assert np.array_equal(read(folder).images, expected)


def test_read_only_folders_stay_as_they_are(folder, user_cache, no_decoding):
    put(folder / "3.4_a.png")
    folder.parent.chmod(0o555)
    try:
        read(folder)
        assert not cache_of(folder).exists()
        assert [path.name.startswith("kitchen-") for path in user_cache.iterdir()] == [True]
        no_decoding()
        read(folder)
    finally:
        folder.parent.chmod(0o755)


def test_without_any_place_for_a_cache_reading_goes_on(folder, monkeypatch, caplog):
    put(folder / "3.4_a.png")
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "file"))
    folder.parent.chmod(0o555)
    try:
        assert len(read(folder).images) == 1
    finally:
        folder.parent.chmod(0o755)
    assert "can't be cached" in caplog.text


def test_an_interrupted_write_leaves_the_old_cache_and_no_rest(folder, monkeypatch):
    put(folder / "3.4_a.png")
    read(folder)
    before = cache_of(folder).read_bytes()
    put(folder / "3.5_b.png")
    monkeypatch.setattr(pictures.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    assert len(read(folder).images) == 2
    assert cache_of(folder).read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [cache_of(folder).name, "kitchen"]


@pytest.mark.slow
def test_many_pictures_are_decoded_by_several_processes_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MIN_FOR_PROCESS", 300)
    monkeypatch.setattr(pictures.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("decoded in this process"))
    for number in range(700):
        cv2.imwrite(str(tmp_path / f"{number:03d}.png"), np.full((8, 8, 3), number % 256, np.uint8))
    (tmp_path / "600.png").write_bytes(b"no picture")
    files = [pictures.File(f"{number:03d}.png", 1, 1) for number in range(700)]
    images, failures = pictures._decode_all("kitchen", str(tmp_path), files, (8, 8, 1))
    expected = np.arange(700) % 256
    expected[600] = 0
    assert (images[:, 0, 0, 0] == expected).all()
    assert failures == {600: (pictures.DAMAGED, "no JPEG, PNG, BMP or WebP picture")}


def test_a_link_to_itself_is_reported_and_no_more(tmp_path):
    put(tmp_path / "a.png")
    for name in ("loop", "loop.png"):
        (tmp_path / name).symlink_to(name)
    found = {file.name: file.size for file in pictures.walk(str(tmp_path))}
    assert list(found) == ["a.png", "loop.png"]
    assert found["a.png"] > 0 > found["loop.png"]


def test_folders_may_nest_deeper_than_functions(tmp_path):
    deep = "d/" * 200
    paths = [tmp_path / name for name in (f"{deep}1_a.jpg", "d/2_a.jpg", "0_a.jpg", "e_3.jpg")]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        path.touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        names = [file.name for file in pictures.walk(str(tmp_path))]
    finally:
        sys.setrecursionlimit(limit)
    # As a person would go through them: folders where their names stand.
    assert names == ["0_a.jpg", "d/2_a.jpg", f"{deep}1_a.jpg", "e_3.jpg"]


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(pictures.PictureError) as error:
        pictures.decode(str(tmp_path / "x.jpg"), 8, 8, 1)
    assert error.value.args == (pictures.NOT_OPENED, "no regular file")
