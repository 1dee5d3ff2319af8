"""Picture files: decodes them to one size and keeps the decoded pixels in a cache."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from utils import processes
from utils.console import progress

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp")  # .jfif: JPEG, as browsers on Windows save it
# Of formats that aren't read: pictures all the same, to be counted with those that are damaged, not passed over.
NOT_READ = (".avif", ".gif", ".heic", ".heif", ".tif", ".tiff")
# Folders that AI-on-the-edge sorts pictures into: 20240131/13; people write 2024-01-31. Above a source Windows has "\".
_TIME = re.compile(r"[/\\]20[0-9]{2}(-?)(0[1-9]|1[0-2])\1(0[1-9]|[12][0-9]|3[01])(/[0-2][0-9])?$")
MIN_SIDE, MAX_SIDE = 4, 4096  # pixels
MAX_FILE_BYTES = 2**27
CACHE_VERSION = 2
CHUNK = 512  # pictures one decoding task handles
MIN_FOR_PROCESS = 5_000  # pictures that are worth the half second a process takes to start

DAMAGED = "damaged picture"
NOT_OPENED = "file can't be opened"
BAD_SIZE = "unusable size"

Shape = tuple[int, int, int]  # height, width, channels
Failures = dict[int, tuple[str, str]]  # picture's number: reason, detail


class PictureError(ValueError):
    """A picture can't be used; the arguments are the kind of reason and the details."""


class File(NamedTuple):
    """A picture file, as the cache identifies it."""

    name: str  # posix path relative to the source
    size: int  # bytes; -1 if it can't be asked for
    times: tuple[int, int]  # nanoseconds

    @classmethod
    def of(cls, name: str, status: os.stat_result) -> "File":
        # Names that are exchanged, or a tool that resets it, keep the time of the last change; the second time tells.
        return cls(name, status.st_size, (status.st_mtime_ns, status.st_ctime_ns))


def walk(root: str) -> Iterator[File]:
    """All pictures below a folder; hidden names are left out, each folder is entered once (links may form loops).

    Raises:
        OSError: a folder can't be listed.
    """
    seen: set[tuple[int, int]] = set()
    # A list of what is still to come, the next one last: folders nest deeper than Python calls functions.
    coming = _listed(root, "", seen)
    while coming:
        name, item = coming.pop()
        if _is_folder(item):
            coming += _listed(root, f"{name}/", seen)
        elif name.lower().endswith((*EXTENSIONS, *NOT_READ)) and (item.is_symlink() or item.is_file()):
            try:
                status = item.stat()
            except OSError:
                # A link to nowhere: decoding it will fail and be reported.
                yield File(name, -1, (0, 0))
            else:
                yield File.of(name, status)


def without_time(root: str, folder: str) -> str:
    """A folder's posix path below ``root`` without a date and hour at its end: they are neither a meter nor a label.

    They may begin above ``root``, an absolute path.
    """
    return _TIME.sub("", f"{root}/{folder}")[len(root) + 1 :]


def _listed(root: str, below: str, seen: set[tuple[int, int]]) -> list[tuple[str, os.DirEntry]]:
    """Names below ``root`` and entries of a folder that wasn't seen yet, the last one first."""
    status = os.stat(os.path.join(root, below))
    if (status.st_dev, status.st_ino) in seen:
        return []
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(os.path.join(root, below)) as found:
        visible = sorted((item for item in found if not item.name.startswith(".")), key=lambda item: item.name)
    return [(below + item.name, item) for item in reversed(visible)]


def _is_folder(item: os.DirEntry) -> bool:
    try:
        return item.is_dir()
    except OSError:
        # A link to itself: a picture's name makes it one that can't be opened.
        return False


def load(source: str, root: str, files: list[File], shape: Shape) -> tuple[np.ndarray, Failures]:
    """Pixels (N, *shape) uint8 of the files below ``root``, from the cache if none changed, and what failed.

    The pixels of a failed file are zero. ``source`` is a name for messages.
    """
    key = _cache_key(files, shape)
    places = _cache_places(root, shape)
    for place in places:
        if cached := _load_cache(place, key, (len(files), *shape)):
            return cached
    started = time.monotonic()
    images, failures = _decode_all(source, root, files, shape)
    log.info("data source '%s': decoded %d pictures in %.1f s", source, len(files), time.monotonic() - started)
    # A file that could not be opened may be open to us next time, without any change to its size and time.
    if not any(reason == NOT_OPENED for reason, _ in failures.values()):
        _save_cache(source, places, key, images, failures)
    return images, failures


def _decode_all(source: str, root: str, files: list[File], shape: Shape) -> tuple[np.ndarray, Failures]:
    images = np.zeros((len(files), *shape), np.uint8)
    failures: Failures = {}
    starts = range(0, len(files), CHUNK)
    paths = [[os.path.join(root, file.name) for file in files[start : start + CHUNK]] for start in starts]
    with _mapper(len(files)) as run:
        decoded = run(functools.partial(_decode_chunk, shape=shape), paths)
        for start, (part, failed) in zip(starts, progress(decoded, source, len(starts), "chunk"), strict=True):
            images[start : start + CHUNK] = part
            failures |= {start + i: reason for i, reason in failed.items()}
    return images, failures


@contextlib.contextmanager
def _mapper(count: int) -> Iterator[Callable]:
    """A ``map`` over all cores for many pictures, in this process for few.

    Processes, because decoding digit-sized pictures is bound by the interpreter's lock.
    """
    workers = min(os.cpu_count() or 1, count // MIN_FOR_PROCESS)
    if workers < 2:
        yield map
        return
    pool = processes.pool(workers)
    try:
        yield pool.map
    finally:
        # An interrupted run must not first decode the rest.
        pool.shutdown(cancel_futures=True)


def _decode_chunk(paths: list[str], shape: Shape) -> tuple[np.ndarray, Failures]:
    images = np.zeros((len(paths), *shape), np.uint8)
    failures: Failures = {}
    for i, path in enumerate(paths):
        try:
            images[i] = decode(path, *shape)
        except PictureError as error:
            failures[i] = error.args
    return images, failures


def decode(path: str, height: int, width: int, channels: int) -> np.ndarray:
    """One picture file as (height, width, channels) uint8, RGB or grey.

    Raises:
        PictureError: it is missing, damaged, truncated or of an unusable size.
    """
    try:
        rgb = _decode_rgb(path)
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(BAD_SIZE, str(error)) from error
    except UnidentifiedImageError as error:
        raise PictureError(DAMAGED, "no JPEG, PNG, BMP or WebP picture") from error
    # Pillow's readers raise a dozen kinds of exceptions on damaged files.
    except Exception as error:
        raise PictureError(DAMAGED, f"{type(error).__name__}: {error}") from error
    rgb = resized(rgb, height, width)
    return rgb if channels == 3 else cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[:, :, None]


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture (H, W, C) uint8 in another size; in its own it stays what it is."""
    if image.shape[:2] == (height, width):
        return image
    enlarging = image.shape[0] <= height and image.shape[1] <= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR if enlarging else cv2.INTER_AREA)


def grey(images: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8 RGB as (N, H, W, 1)."""
    # One tall picture, as OpenCV converts one at a time.
    tall = cv2.cvtColor(images.reshape(-1, images.shape[2], 3), cv2.COLOR_RGB2GRAY)
    return tall.reshape(*images.shape[:3], 1)


def size(path: str) -> tuple[int, int] | None:
    """Width and height of a picture file in pixels, as viewers show it, None if its head can't be read."""
    try:
        with Image.open(path, formats=("JPEG", "PNG", "BMP", "WEBP")) as picture:
            noted = picture.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in picture.info else 1
            return picture.size[::-1] if 5 <= noted <= 8 else picture.size
    # As in decode.
    except Exception:
        return None


def _decode_rgb(path: str) -> np.ndarray:
    # Pillow, as OpenCV fills the missing part of a truncated JPEG with grey and stays silent.
    with Image.open(BytesIO(_content(path)), formats=("JPEG", "PNG", "BMP", "WEBP")) as picture:
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in picture.size):
            size = f"{picture.width}x{picture.height}"
            raise PictureError(BAD_SIZE, f"{size} pixels; each side needs {MIN_SIDE} to {MAX_SIDE}")
        picture = _upright(picture)
        if picture.mode.startswith("I"):
            grey = (np.asarray(picture).astype(np.int64).clip(0, 65535) + 128) // 257
            return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
        # Palettes with partial transparency only convert by way of RGBA.
        return np.asarray((picture.convert("RGBA") if "transparency" in picture.info else picture).convert("RGB"))


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as viewers show it: a phone stores it as the sensor lay, and notes how it was held (EXIF)."""
    try:
        return ImageOps.exif_transpose(picture) if "exif" in picture.info else picture
    # A damaged note makes no damaged picture; a damaged picture fails again when it is converted.
    except Exception:
        return picture


def _content(path: str) -> bytes:
    """The whole file: Pillow's own many small reads would hand the interpreter's lock over at each."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for a writer.
            raise PictureError(NOT_OPENED, "no regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise PictureError(BAD_SIZE, f"the file is larger than {MAX_FILE_BYTES >> 20} MiB")
        return Path(path).read_bytes()
    except OSError as error:
        raise PictureError(NOT_OPENED, str(error.strerror)) from error


def _cache_key(files: list[File], shape: Shape) -> str:
    digest = hashlib.sha256(repr((CACHE_VERSION, *shape)).encode())
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0{file.times}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _cache_places(root: str, shape: Shape) -> list[Path]:
    """Where the cache may lie, best first: beside the source, unless that folder is read-only; the user's cache."""
    folder = Path(root)
    size = "x".join(map(str, shape))
    real = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "digit_recognizer"
    places = [home / f"{folder.name}-{real}.{size}.npz"]
    # The mode counts, too: root may write anywhere, but a folder marked read-only is to stay as it is.
    if os.stat(folder.parent).st_mode & 0o222 and os.access(folder.parent, os.W_OK | os.X_OK):
        places.insert(0, folder.parent / f".{folder.name}.{size}.digits.npz")
    return places


def _load_cache(place: Path, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray, Failures] | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            images = stored["images"]
            failures = {i: (reason, detail) for i, reason, detail in json.loads(str(stored["failures"]))}
    except FileNotFoundError:
        return None
    # Whatever is wrong with a cache, the pictures can be decoded again.
    except Exception as error:
        log.info("cache %s is not usable (%s); decoding again", place, error)
        return None
    return (images, failures) if images.shape == shape and images.dtype == np.uint8 else None


def _save_cache(source: str, places: list[Path], key: str, images: np.ndarray, failures: Failures) -> None:
    as_text = json.dumps([(i, *failure) for i, failure in failures.items()])
    for place in places:
        try:
            _write_whole(place, key=key, images=images, failures=as_text)
            return
        except OSError as error:
            log.info("data source '%s': no cache at %s (%s)", source, place, error)
    log.warning("data source '%s': pictures can't be cached and will be decoded at every start", source)


def _write_whole(place: Path, **content: np.ndarray | str) -> None:
    """Writes the file so that others see either all of it or nothing."""
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as stream:
            np.savez(stream, **content)
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)
