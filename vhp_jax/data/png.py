"""Decodes many small grey PNG images of one size at once.

Enough of PNG for the data sets: one channel of 1 or 8 bits, not interlaced. All images
are unfiltered together, row by row, which is many times faster than one by one.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from vhp_jax.data.base import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode(
    place: object, contents: Sequence[bytes], height: int, width: int
) -> np.ndarray:
    """Decodes grey images of one size.

    Args:
      place: where they are from, named in messages.
      contents: [N] PNG files, all with the same number of bits.
      height: wanted, pixels.
      width: wanted, pixels.

    Returns:
      uint8 [N, height, width], 0 or 1 for 1 bit, 0 to 255 for 8 bits.

    Raises:
      DataError: one of them is damaged, or of another kind or size.
    """
    images = [_unpack(f"{place}, image {i}", png) for i, png in enumerate(contents)]
    for index, (header, _) in enumerate(images):
        wanted = (width, height, images[0][0][2], 0, 0, 0, 0)
        if header != wanted or header[2] not in (1, 8):
            raise DataError(
                f"{place}, image {index}: {header[0]}x{header[1]} pixels, {header[2]} "
                f"bits, colour type {header[3]}, interlace {header[6]}; wanted "
                f"{width}x{height}, 1 or 8 bits like the others, 0, 0"
            )
    bits = images[0][0][2] if images else 8
    num_bytes = (width * bits + 7) // 8
    size = height * (1 + num_bytes)
    for index, (_, data) in enumerate(images):
        if len(data) != size:
            raise DataError(
                f"{place}, image {index}: {len(data)} bytes of pixels, wanted {size}"
            )
    raw = np.frombuffer(b"".join(data for _, data in images), np.uint8)
    raw = raw.reshape(len(images), height, 1 + num_bytes)
    if (raw[:, :, 0] > 4).any():
        index = int(np.argmax((raw[:, :, 0] > 4).any(axis=1)))
        raise DataError(f"{place}, image {index}: unknown row filter, wanted 0 to 4")
    rows = _unfilter(raw[:, :, 0], raw[:, :, 1:])
    if bits == 1:
        rows = np.unpackbits(rows, axis=2, count=width)
    return rows


def _unpack(place: str, png: bytes) -> tuple[tuple[int, ...], bytes]:
    """Header and unpacked pixel data of one file."""
    if not png.startswith(SIGNATURE):
        raise DataError(f"{place}: begins with {png[:8].hex(' ')}, wanted a PNG file")
    header, packed, kind = None, [], b""
    position = len(SIGNATURE)
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", png, position)
            end = position + 8 + length
            (crc,) = struct.unpack_from(">I", png, end)
            body = png[position + 8 : end]
            if crc != zlib.crc32(png[position + 4 : end]):
                raise DataError(f"{place}: damaged PNG file: checksum of {kind!r}")
            if kind == b"IHDR":
                header = struct.unpack(">IIBBBBB", body)
            elif kind == b"IDAT":
                packed.append(body)
            position = end + 4
        pixels = zlib.decompress(b"".join(packed))
    except (struct.error, zlib.error) as error:
        raise DataError(f"{place}: damaged PNG file: {error}") from None
    if header is None:
        raise DataError(f"{place}: damaged PNG file: no header")
    return header, pixels


def _unfilter(filters: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Undoes the row filters of Sec. 9 of the PNG standard, for pixels of <= 1 byte.

    Args:
      filters: uint8 [N, H], 0 none, 1 left, 2 above, 3 mean of both, 4 Paeth.
      rows: uint8 [N, H, B].

    Returns:
      uint8 [N, H, B].
    """
    out = rows.copy()
    above = np.zeros_like(out[:, 0])  # [N, B]
    for y in range(out.shape[1]):
        kind = filters[:, y]
        (chosen,) = np.nonzero(kind == 2)
        out[chosen, y] += above[chosen]
        for number in (1, 3, 4):
            (chosen,) = np.nonzero(kind == number)
            if not len(chosen):
                continue
            b = above[chosen].astype(np.int16)
            row = out[chosen, y].astype(np.int16)
            a = c = np.zeros(len(chosen), np.int16)  # left, above left
            for x in range(out.shape[2]):
                if number == 1:
                    guess = a
                elif number == 3:
                    guess = (a + b[:, x]) // 2
                else:
                    guess = _paeth(a, b[:, x], c)
                row[:, x] = a = (row[:, x] + guess) & 255
                c = b[:, x]
            out[chosen, y] = row
        above = out[:, y]
    return out


def _paeth(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Of left, above and above left the nearest to a + b - c; ties in that order."""
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest = np.where(to_b <= to_c, b, c)
    return np.where((to_a <= to_b) & (to_a <= to_c), a, nearest)
