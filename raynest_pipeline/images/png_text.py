"""The text chunks of a PNG (PNG specification, third edition, 11.3.3): tEXt, zTXt, iTXt."""

import zlib

TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
MAX_TEXT_BYTES = 1 << 20
"""A compressed text that grows beyond this is not read (a decompression bomb)."""


def parse_text(kind: bytes, body: bytes) -> tuple[str, str] | None:
    """Keyword and value of a text chunk; None when it is not well-formed: no image is worse for it."""
    keyword, separator, rest = body.partition(b"\0")
    if not keyword or not separator:
        return None
    try:
        value = _value(kind, rest)
    except (UnicodeDecodeError, zlib.error, IndexError):
        return None
    return (keyword.decode("latin-1"), value) if value is not None else None


def _value(kind: bytes, rest: bytes) -> str | None:
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        # The first byte names the compression method; there is only one.
        return _inflated(rest[1:]).decode("latin-1") if rest[0] == 0 else None
    compressed = rest[0] == 1
    _language, _, rest = rest[2:].partition(b"\0")
    _translated, separator, text = rest.partition(b"\0")
    if not separator:
        return None
    return (_inflated(text) if compressed else text).decode("utf-8")


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, MAX_TEXT_BYTES)
    if not inflater.eof:
        raise zlib.error("cut off, or too long")
    return text
