"""How an image file becomes bytes: the policy of docs/data.md, in the one place that implements it.

Every file becomes (H, W, 1) or (H, W, 3) bytes as a viewer shows it: turned upright, composed on the background where it
is transparent, integers and floats scaled from the range of their mode. What has no known range is a DataError.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pfgm_fast.data import geometry
from pfgm_fast.data.imageset import ImageSet
from pfgm_fast.errors import ArgumentError, DataError

ALPHA, ANIMATED, BAD_EXIF = "alpha", "animated", "exif"

# Containers of Pillow's list that are documents, videos, meteorology or astronomy; EPS would start Ghostscript.
_NO_PICTURES = frozenset(
    [
        "BUFR",
        "EPS",
        "FITS",
        "GRIB",
        "HDF5",
        "IMT",
        "IPTC",
        "MCIDAS",
        "MPEG",
        "PDF",
        "SPIDER",
        "WMF",
        "XVTHUMB",
    ]
)
_FIRST = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ANIMATED = frozenset({"GIF", "PNG", "WEBP", "AVIF", "TIFF", "FLI"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_TURNED = {  # EXIF orientation → what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Policy:
    """The choices of a reader.

    Args:
        size: (height, width) of the result; None: as the images are.
        crop: (height, width) of the rectangle around the centre that is cut out first; None: all of it.
        channels: 1 (grey, by the luma of ITU-R 601-2), 3 (colour), or None: colour where any image is coloured.
        background: what shows through transparent pixels, three bytes.
    """

    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    channels: int | None = None
    background: tuple[int, int, int] = (255, 255, 255)

    @classmethod
    def of(cls, size: object, crop: object, channels: object, background: object) -> Policy:
        """The policy of a caller's arguments. Raises: ArgumentError naming the one that is wrong."""
        if channels is not None and (isinstance(channels, bool) or channels not in (1, 3)):
            raise ArgumentError(f"channels must be 1 (grey), 3 (colour) or None; got {channels!r}")
        ground = tuple(background) if isinstance(background, Sequence) else (background,) * 3
        if len(ground) != 3 or not all(isinstance(v, (int, np.integer)) and 0 <= v <= 255 for v in ground):
            raise ArgumentError(f"background must be a grey or (r, g, b) of 0 to 255; got {background!r}")
        return cls(
            None if size is None else geometry.parse_size(size),
            None if crop is None else geometry.parse_size(crop, "crop"),
            None if channels is None else (1 if channels == 1 else 3),
            (int(ground[0]), int(ground[1]), int(ground[2])),
        )

    def finish(self, image: Image.Image) -> np.ndarray:
        """A grey or colour image (mode L or RGB) → (H, W, C) bytes of the channels, crop and size that were asked for."""
        if self.channels is not None and image.mode != ("L" if self.channels == 1 else "RGB"):
            image = image.convert("L" if self.channels == 1 else "RGB")
        if self.crop is not None:
            image = geometry.centre_crop(image, *self.crop)
        if self.size is not None:
            image = geometry.fit(image, *self.size)
        array = np.asarray(image)
        return array[..., None] if array.ndim == 2 else array

    def of_arrays(self, found: ImageSet) -> ImageSet:
        """A set that came as arrays, brought to the channels, crop and size that were asked for, image by image.

        Four channels are red, green, blue and alpha where other channels are asked for, and stay as they are otherwise.
        """
        channels, height, width = found.shape
        asked = self.channels in (None, channels), self.crop in (None, (height, width))
        if all(asked) and self.size in (None, (height, width)):
            return found
        result: np.ndarray | None = None
        for i, image in enumerate(found.images.numpy()):
            done = self._named(image.transpose(1, 2, 0), found.name)
            if result is None:
                result = np.empty((len(found), *done.shape), np.uint8)
            result[i] = done
        assert result is not None
        images = torch.from_numpy(np.ascontiguousarray(result.transpose(0, 3, 1, 2)))
        return dataclasses.replace(found, images=images)

    def _named(self, image: np.ndarray, name: str) -> np.ndarray:
        try:
            return self.of_array(image)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error

    def of_array(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) bytes, C of 1, 3 or 4 → (H, W, C) bytes as asked for."""
        if image.shape[-1] == 4 and self.channels is None:
            planes = [self.finish(Image.fromarray(np.ascontiguousarray(image[..., c]))) for c in range(4)]
            return np.concatenate(planes, -1)
        if image.shape[-1] == 4:
            image = self.compose(image[..., :3], image[..., 3])
        return self.finish(
            Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
        )

    def compose(self, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        """(H, W, C) bytes over the background, by (H, W) bytes of alpha; grey stays grey on a grey background."""
        ground = np.array(self.background, np.uint32)
        if colour.shape[-1] == 1:
            ground = ground[:1] if (ground == ground[0]).all() else ground
        opaque = alpha[..., None].astype(np.uint32)
        return ((colour * opaque + ground * (255 - opaque) + 127) // 255).astype(np.uint8)


def decodable() -> dict[str, tuple[str, ...]]:
    """File name endings that are read → the formats that such a file may have: all that have a signature, or its own."""
    Image.init()
    kinds = [kind for kind in Image.OPEN if kind not in _NO_PICTURES]
    signed = [kind for kind in kinds if Image.OPEN[kind][1] is not None]
    signed.sort(key=lambda kind: _FIRST.index(kind) if kind in _FIRST else len(_FIRST))
    return {
        suffix: tuple(signed) if kind in signed else (*signed, kind)
        for suffix, kind in Image.registered_extensions().items()
        if kind in kinds
    }


def decode(raw: bytes, formats: tuple[str, ...], policy: Policy) -> tuple[np.ndarray, list[str]]:
    """(H, W, 1 or 3) bytes of an image file, and what was noticed: ALPHA, ANIMATED, BAD_EXIF.

    Raises: DataError saying what is wrong with the file.
    """
    return _told(lambda: convert(Image.open(io.BytesIO(raw), formats=formats), policy))


def from_pillow(image: Image.Image, policy: Policy) -> tuple[np.ndarray, list[str]]:
    """The same of an image that Pillow has opened."""
    return _told(lambda: convert(image, policy))


_LIMIT_HELP = "To read such images raise Pillow's limit, PIL.Image.MAX_IMAGE_PIXELS."
T = TypeVar("T")


def _told(read: Callable[[], T]) -> T:
    """What `read` returns, or one DataError for all that decoders raise."""
    try:
        return read()
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{error} {_LIMIT_HELP}") from None
    except UnidentifiedImageError:
        raise DataError("cannot be read as an image: its bytes are of no known format") from None
    except Exception as error:  # on damaged bytes a decoder may raise anything
        raise DataError(f"cannot be read as an image: {error or type(error).__name__}") from error


def convert(image: Image.Image, policy: Policy) -> tuple[np.ndarray, list[str]]:
    """The steps of docs/data.md, in their order."""
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise DataError(
            f"{image.width}×{image.height} pixels are more than {Image.MAX_IMAGE_PIXELS:,}, and could be a "
            f"decompression bomb. {_LIMIT_HELP}"
        )
    noticed = []
    raw_mode = _raw_mode(image)  # of the file; gone once it is loaded
    if image.format in _ANIMATED and getattr(image, "is_animated", False):
        noticed.append(ANIMATED)
    image.load()
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        plain: Image.Image = image
    else:
        colour, alpha = _colour_and_alpha(image, raw_mode)
        if alpha is not None and int(alpha.min()) < 255:
            noticed.append(ALPHA)
            colour = policy.compose(colour, alpha)
        if (
            (image.mode in ("P", "PA") or raw_mode.startswith("LA"))
            and colour.shape[-1] == 3
            and _is_grey(colour)
        ):
            colour = colour[..., :1]
        plain = Image.fromarray(colour[..., 0] if colour.shape[-1] == 1 else colour)
    try:
        turn = _TURNED.get(orientation(image))
    except Exception:  # a damaged block of metadata: viewers show the picture as it is stored
        turn = None
        noticed.append(BAD_EXIF)
    return policy.finish(plain if turn is None else plain.transpose(turn)), noticed


def _raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file, such as "RGB;16B"; empty where the decoder does not say."""
    for tile in getattr(image, "tile", None) or ():
        arguments = tile[3]
        first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        return first if isinstance(first, str) else ""
    return ""


def orientation(image: Image.Image) -> int:
    """EXIF's (or XMP's) orientation, 1 to 8; 1 where none is told. Pillow turns TIFF files by itself."""
    told = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
    if image.format == "TIFF" or not any(key in image.info for key in told):
        return 1
    found = image.getexif().get(0x0112, 1)
    return found if isinstance(found, int) else 1


def _is_grey(colour: np.ndarray) -> bool:
    return bool((colour[..., :1] == colour[..., 1:]).all())


def _colour_and_alpha(image: Image.Image, raw_mode: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 1 or 3) bytes and (H, W) bytes of alpha, or None where nothing is transparent."""
    mode, key = image.mode, image.info.get("transparency")
    if mode in _SIXTEEN_BITS or mode in ("I", "F"):
        values = np.asarray(image)
        grey = _floats(image, values) if mode == "F" else _integers(image, values, raw_mode)
        return grey[..., None], None if key is None else _opaque(values[..., None], key)
    if mode in ("1", "L", "RGB"):
        array = np.asarray(image.convert("L") if mode == "1" else image)
        array = array[..., None] if array.ndim == 2 else array
        if key is not None and ";16" in raw_mode:
            raise DataError(
                "16-bit colour with a transparent key colour is not read: save it with an alpha channel"
            )
        if isinstance(key, int):  # of a PNG with 2 or 4 bits a sample: in the file's levels
            key *= {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
        return array, None if key is None else _opaque(array, key)
    if mode in ("LA", "La"):
        both = np.asarray(image.convert("LA"))
        return both[..., :1], both[..., 1]
    if mode in ("P", "PA", "RGBA", "RGBa") and image.has_transparency_data:
        both = np.asarray(image.convert("RGBA"))
        return both[..., :3], both[..., 3]
    if mode in ("P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"):
        return np.asarray(image.convert("RGB")), None
    raise DataError(f"images of Pillow's mode {mode} are not read: save it as 8-bit grey or RGB")


def _opaque(values: np.ndarray, key: object) -> np.ndarray:
    """(H, W) alpha of (H, W, C) values: 0 where a pixel is the key colour, else 255."""
    return np.where((values == np.asarray(key)).all(-1), 0, 255).astype(np.uint8)


def _white_is_zero(image: Image.Image) -> bool:
    """TIFF's photometric interpretation 0, which Pillow heeds for 8 bits only."""
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]


def _integers(image: Image.Image, values: np.ndarray, raw_mode: str) -> np.ndarray:
    """The upper 8 bits of unsigned integers of 12 or 16, as Pillow takes them of 16-bit colour."""
    sixteen = image.mode in _SIXTEEN_BITS and image.format in (None, "PNG", "TIFF", "JPEG2000", "PPM")
    if not sixteen and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise DataError(
            f"mode {image.mode} of a {image.format} file ({raw_mode or 'integers'}) has no range that is known: "
            "save it with 8 or 16 unsigned bits"
        )
    bits = 12 if raw_mode == "I;12" else 16
    if int(values.min()) < 0 or int(values.max()) >= 1 << bits:
        raise DataError(f"values from {values.min()} to {values.max()} do not fit in {bits} bits")
    upper = (values >> (bits - 8)).astype(np.uint8)
    return 255 - upper if _white_is_zero(image) else upper


def _floats(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Bytes of floats in [0, 1]: round(255 v). Nothing else has a range that is known."""
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # NaN fails too
        raise DataError(
            f"mode F (float) holds values from {low:g} to {high:g}: only 0 to 1 have a known meaning; scale it, or "
            "save it with 8 or 16 bits"
        )
    scaled = np.rint(values.astype(np.float64) * 255)
    return (255 - scaled if _white_is_zero(image) else scaled).astype(np.uint8)
