"""Decompresses request bodies that are sent with `Content-Encoding: gzip`."""

import zlib

from starlette.datastructures import Headers

from shared.errors import InvalidRequest, UnsupportedEncoding

_PIECE_BYTES = 2**18
_GZIP_FORMAT = 31
"""The `wbits` by which zlib reads the header and the checksum of gzip."""


class Gunzip:
    """Decompresses a gzip body piece by piece, so that a small body that expands to a large one takes no memory.

    Attributes:
        has_more: whether `read` may return more before the next `feed`.
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_FORMAT)
        self._input = b""
        self.has_more = False

    def feed(self, compressed: bytes) -> None:
        """Take the next part of the body. The part before must be read to its end."""
        self._input = compressed
        self.has_more = bool(compressed)

    def read(self) -> bytes:
        """Return the next 256 KiB of decompressed data, or fewer, or none.

        Raises:
            InvalidRequest: the data are not gzip.
        """
        if self._member.eof:  # another member follows (RFC 1952, section 2.2)
            self._member = zlib.decompressobj(_GZIP_FORMAT)
        try:
            data = self._member.decompress(self._input, _PIECE_BYTES)
        except zlib.error:
            raise InvalidRequest("the body is not gzip, as its Content-Encoding declares, or it is damaged") from None
        self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        # After a full piece zlib may keep data of which it has consumed the input.
        self.has_more = bool(self._input) or (len(data) == _PIECE_BYTES and not self._member.eof)
        return data

    def finish(self) -> None:
        """Raise InvalidRequest if the data end before the gzip stream does."""
        if not self._member.eof:
            raise InvalidRequest("the gzip body is cut off")


def gunzip_for(headers: Headers) -> Gunzip | None:
    """Return what decompresses the body of a request; None if the body is not compressed.

    Raises:
        UnsupportedEncoding: the body is encoded in another way than gzip.
    """
    encodings = [name.strip().lower() for name in ",".join(headers.getlist("content-encoding")).split(",")]
    match [name for name in encodings if name not in ("", "identity")]:
        case []:
            return None
        case ["gzip" | "x-gzip"]:
            return Gunzip()
        case others:
            raise UnsupportedEncoding(f"the body is encoded as {', '.join(others)[:50]!r}: send it as gzip or as it is")
