"""What a MATLAB 5 file says of its arrays' sizes and types, checked before scipy acts on it.

scipy believes the sizes: a cell array of 2**31 cells in a file of 200 bytes is made before the first cell is missed, an
empty text of 2**31 letters is filled with blanks, and cells within cells within cells end the process when its stack
does; a number type that there is not makes it read memory that is not its own. Format: MathWorks, "MAT-File Format",
level 5.
"""

import struct
import zlib
from math import prod

HEADER = 128
"""Bytes of the file's header; the last two say the byte order."""
MATRIX, COMPRESSED, INT32, UINT32 = 14, 15, 5, 6
CELL, STRUCT, OBJECT, SPARSE, FUNCTION, OPAQUE = 1, 2, 3, 5, 16, 17
HOLDERS = (CELL, STRUCT, OBJECT, FUNCTION, OPAQUE)
"""Kinds of arrays that have arrays in them."""
TYPES = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 12, 13, MATRIX, 16, 17, 18))
"""Of the parts of an array: numbers, arrays, and text in UTF-8, -16 and -32."""
MAX_DEPTH = 16
"""Arrays within arrays; the publishers' files have three."""
MAX_FIELDS = 1000
MAX_SIDES = 8
"""That a message names."""


def check_sizes(data: bytes, most: int) -> None:
    """Raises a ValueError where a level 5 file's arrays cannot be as large, as many or as deep as it says, or unpack to
    more than `most` bytes together. Other files pass."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:HEADER])
    if order is None or data[:4].count(b"\0"):  # level 4, whose sizes scipy compares with the file
        return
    at, room = HEADER, most
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            raise ValueError(f"it ends {size - len(body)} bytes too early")
        if kind == COMPRESSED:
            body = _unpacked(body, room)
            room -= len(body)
            if len(body) >= 8:
                kind, inner = struct.unpack_from(f"{order}II", body)
                body = body[8 : 8 + inner]
        if kind == MATRIX:
            _check_matrix(memoryview(body), order, 1)
        at += 8 + size


def _unpacked(body: bytes, room: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(body, room + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed part is damaged: {error}") from None
    if len(content) > room:
        raise ValueError("it unpacks to more than is read")
    return content


def _elements(body: memoryview, order: str) -> "list[tuple[int, memoryview]]":
    """Type and content of the elements that lie one after another."""
    found, at = [], 0
    while at + 8 <= len(body):
        kind, size = struct.unpack_from(f"{order}II", body, at)
        start = at + 8
        if kind >> 16:  # a small element: type and size share one word, the content is in the other
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            at += 8
        else:
            at = start + size + -size % 8
        if kind not in TYPES:
            raise ValueError(f"a part of type {kind}, which there is not")
        if start + size > min(at, len(body)):
            raise ValueError(f"a part of {size} bytes that ends too early")
        found.append((kind, body[start : start + size]))
    return found


def _check_matrix(body: memoryview, order: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"its arrays lie more than {MAX_DEPTH} deep in one another")
    parts = _elements(body, order)
    if not parts:
        return  # an empty array
    if parts[0][0] != UINT32 or len(parts[0][1]) != 8:
        raise ValueError("an array without flags")
    kind = struct.unpack_from(f"{order}I", parts[0][1])[0] & 0xFF
    if kind not in (FUNCTION, OPAQUE):
        if len(parts) < 3 or parts[1][0] not in (INT32, UINT32):
            raise ValueError("an array without a size")
        sides = struct.unpack_from(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
        fields = _fields(parts[3 + (kind == OBJECT) :], order) if kind in (STRUCT, OBJECT) else 1
        least = max(1, 8 * fields if kind in (CELL, STRUCT, OBJECT) else 1)
        if min(sides, default=0) < 0 or (kind != SPARSE and prod(sides) * least > len(body)):
            raise ValueError(f"an array of {' x '.join(map(str, sides[:MAX_SIDES]))} in {len(body)} bytes")
    for element, content in parts:
        if element == MATRIX:
            if kind not in HOLDERS:
                raise ValueError("an array where numbers should be")
            _check_matrix(content, order, depth + 1)


def _fields(parts: "list[tuple[int, memoryview]]", order: str) -> int:
    """Number of a structure's fields: after its name come the length of every field's name, and these names."""
    if len(parts) < 2 or len(parts[0][1]) < 4:
        raise ValueError("a structure without fields' names")
    fields: int = len(parts[1][1]) // max(1, struct.unpack_from(f"{order}i", parts[0][1])[0])
    if fields > MAX_FIELDS:
        raise ValueError(f"a structure of {fields} fields")
    return fields
