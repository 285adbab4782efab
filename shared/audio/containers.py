"""Reads from the bytes of a file what FFmpeg does not tell: whether it is truncated, and which lengths are true."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import SEEK_CUR, SEEK_END, SEEK_SET
from itertools import pairwise
from typing import IO

from shared.errors import AudioEmpty, AudioUndecodable

_BLOCK = 2**20
_MAX_CHUNKS = 1000
_MAX_OGG_PAGE = 27 + 255 + 255 * 255
_OGG_FIRST_PAGE = b"OggS\x00\x02"
"""How the first page of a logical stream begins (RFC 3533, section 6)."""
_OGG_END = 4
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
"""The identifiers of the two elements that a Matroska or WebM file consists of (RFC 8794 and RFC 9559)."""
_UNKNOWN_SIZE = 0x7FFF_0000
"""A program that writes a WAV to a pipe does not know its size, and puts 0, this or more into the header."""

_REFUSED = {
    b"#EXTM3U": "a playlist",
    b"ffconcat": "a playlist",
    b"[playlist]": "a playlist",
    b"FLV\x01": "a Flash video",
    b"\x00\x00\x01\xba": "an MPEG program stream",
    b".RMF": "a RealMedia file",
    b".ra\xfd": "a RealAudio file",
    b"MAC ": "a Monkey's Audio file",
    b"wvpk": "a WavPack file",
    b"TTA1": "a True Audio file",
    b"MP+": "a Musepack file",
    b"MPCK": "a Musepack file",
    b"DSD ": "a DSD file",
    b"FRM8": "a DSD file",
    b"tBaK": "a TAK file",
    b"ajkg": "a Shorten file",
    b"Creative Voice File": "a Creative Voice file",
    b"NIST_1A": "a NIST Sphere file",
    b"#!SILK": "a SILK file",
    b"\x02#!SILK": "a SILK file",
    b"MThd": "a MIDI file",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
}
"""The first bytes of files that are often sent, and that are not supported."""
_REFUSED_RIFF = {b"AVI ": "an AVI video", b"QLCM": "a QCP file", b"WEBP": "a picture", b"RMID": "a MIDI file"}


class FileSpan:
    """A file-like object over some bytes of a file, with a position of its own."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._size = end - start
        self._position = 0

    def again(self) -> "FileSpan":
        """Returns the same bytes with another position, which is their start."""
        return FileSpan(self._file, self._start, self._start + self._size)

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self._size - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(rest if size < 0 else min(size, rest))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Raises ValueError if the new position is before the start."""
        position = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self._size}[whence] + offset
        if position < 0:
            raise ValueError("the position is before the start of the file")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


@dataclass(frozen=True)
class FileLayout:
    """How the recording lies in its file.

    Attributes:
        links: the recordings that the file consists of, one after the other. Only a chained Ogg has several.
        options: options for FFmpeg's demuxer.
        states_duration: whether the lengths in the header are true.
        is_whole: whether the file surely has all of its bytes, so that what cannot be read of it is damaged.
    """

    links: tuple[FileSpan, ...]
    options: dict[str, str] = field(default_factory=dict[str, str])
    states_duration: bool = True
    is_whole: bool = False


def read_layout(file: IO[bytes]) -> FileLayout:
    """Returns how the recording lies in a file.

    Raises:
        AudioEmpty: the file has no bytes.
        AudioUndecodable: the file is truncated, or its chunks have impossible lengths.
    """
    size = file.seek(0, SEEK_END)
    if size == 0:
        raise AudioEmpty("the recording has zero bytes")
    whole = FileSpan(file, 0, size)
    head = whole.read(64)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _read_wav(whole, size)
    if head[:4] == b"riff" and head[24:28] == b"wave":
        _check_wave64(whole, size)
    elif head[:4] == b"caff":
        _check_caf(whole, size)
    elif head[4:8] == b"ftyp":
        return FileLayout((whole,), is_whole=_is_whole_mp4(whole, size))
    elif head[:4] == _EBML:
        return FileLayout((whole,), is_whole=_is_whole_matroska(whole, size))
    elif head[:4] == b"OggS":
        is_whole = _is_whole_ogg(whole, size)
        starts = [*_ogg_link_starts(whole, size), size]
        return FileLayout(tuple(FileSpan(file, *span) for span in pairwise(starts)), is_whole=is_whole)
    return FileLayout((whole,))


def describe_refused(layout: FileLayout) -> str | None:
    """Returns what a file is, such as "an AVI video", if it is of a known kind that is not supported."""
    layout.links[0].seek(0)
    head = layout.links[0].read(3 * 188)
    if head[:4] == b"RIFF":
        return _REFUSED_RIFF.get(head[8:12])
    if len(head) > 2 * 188 and head[0] == head[188] == head[376] == 0x47:
        return "an MPEG transport stream"
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    return next((name for start, name in _REFUSED.items() if text.startswith(start) or head.startswith(start)), None)


def _truncated(size: int) -> AudioUndecodable:
    return AudioUndecodable(f"the recording is cut off after {size} bytes")


def _read_wav(file: FileSpan, size: int) -> FileLayout:
    """Returns the layout of a WAV, in which the lengths of the file and of the data may differ, or be unknown.

    A length that is wrong is not used if the other one is right: then the recording ends where the file ends.
    """
    layout = FileLayout((file,))
    whole, data, start = _wav_lengths(file, size)
    if data is None:
        # Most of the data may be missing, or FFmpeg knows what this is.
        if whole is not None and size < 0.99 * whole:
            raise _truncated(size)
        return layout
    end = size if data == 0 else start + data
    if size - start < 0.99 * (end - start):
        if data < _UNKNOWN_SIZE and (whole is None or abs(whole - size) > 1):
            raise _truncated(size)
    elif end + 8 > size or whole != size or _is_chunk(file, end + end % 2, size):
        return layout
    return FileLayout((file,), {"ignore_length": "1"}, states_duration=False)


def _wav_lengths(file: FileSpan, size: int) -> tuple[int | None, int | None, int]:
    """Returns the stated size of a WAV file, the stated size of its data, and where the data start.

    The size of the file is None if it is unknown; that of the data is None if there are no data.
    """
    file.seek(0)
    letters, riff = struct.unpack("<4sI", file.read(8))
    whole: int | None = riff + 8
    large: tuple[int, int] | None = None
    for identifier, length, start in _riff_chunks(file, 12, size):
        if identifier == b"ds64" and letters != b"RIFF" and length >= 16:
            file.seek(start)
            riff, data = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))
            whole, large = riff + 8, (riff, data)
        elif identifier == b"data":
            is_unknown = large is None and (riff <= start - 8 or riff >= _UNKNOWN_SIZE)
            return None if is_unknown else whole, large[1] if large else length, start
    return None if riff >= _UNKNOWN_SIZE and large is None else whole, None, size


def _riff_chunks(file: FileSpan, start: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the identifier, the length and the start of the data of each chunk."""
    for _ in range(_MAX_CHUNKS):
        if start + 8 > size:
            return
        file.seek(start)
        identifier, length = struct.unpack("<4sI", file.read(8))
        yield identifier, length, start + 8
        start += 8 + length + length % 2


def _is_chunk(file: FileSpan, start: int, size: int) -> bool:
    """Whether a chunk begins at a place of a RIFF file."""
    found = next(_riff_chunks(file, start, size), None)
    return found is not None and found[0].isalnum() and found[2] + found[1] <= size + 1


def _check_wave64(file: FileSpan, size: int) -> None:
    """Raises AudioUndecodable if a Wave64 file is truncated: neither it nor its data have their stated lengths."""
    file.seek(16)
    (whole,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
    start = 40
    for _ in range(_MAX_CHUNKS):
        if start + 24 > size:
            break
        file.seek(start)
        identifier, length = struct.unpack("<4s12xQ", file.read(24))
        if identifier == b"data":
            if size < 0.99 * min(whole, start + length) and length < 2**62:
                raise _truncated(size)
            return
        start += max(24, length + -length % 8)
    raise _truncated(size)


def _check_caf(file: FileSpan, size: int) -> None:
    """Raises AudioUndecodable if a Core Audio file is truncated, or a chunk has a negative length."""
    start = 8
    for _ in range(_MAX_CHUNKS):
        if start + 12 > size:
            break
        file.seek(start)
        identifier, length = struct.unpack(">4sq", file.read(12))
        if identifier == b"data" and length == -1:  # until the end of the file
            return
        if length < 0:
            raise AudioUndecodable("the recording is damaged: a part of the file has a negative length")
        if identifier == b"data" and size < 0.99 * (start + 12 + length):
            raise _truncated(size)
        start += 12 + length


def _is_whole_mp4(file: FileSpan, size: int) -> bool:
    """Returns whether an MP4 or M4A file ends where a box ends.

    Raises:
        AudioUndecodable: the file has no index (the box `moov`).
    """
    start = 0
    has_index = False
    for _ in range(_MAX_CHUNKS):
        if start + 8 > size:
            break
        file.seek(start)
        length, identifier, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        has_index = has_index or identifier == b"moov"
        length = large if length == 1 else length
        if length < 8:  # until the end of the file, or not a length
            break
        start += length
    if not has_index:
        raise AudioUndecodable("the index of the recording (moov) is missing: the upload was cut off")
    return start == size


def _is_whole_matroska(file: FileSpan, size: int) -> bool:
    """Returns whether a Matroska or WebM file has the length that it states. Live streams state none."""
    start = 0
    for identifier in (_EBML, _SEGMENT):
        file.seek(start)
        head = file.read(12).ljust(12, b"\0")
        width = 9 - head[4].bit_length()
        length = int.from_bytes(head[4 : 4 + width], "big") & ~(1 << 7 * width)
        if head[:4] != identifier or width > 8 or length == (1 << 7 * width) - 1:
            return False
        start += 4 + width + length
    return start <= size


def _is_whole_ogg(file: FileSpan, size: int) -> bool:
    """Returns whether the last page of an Ogg file is marked as the last of its stream (RFC 3533, section 6).

    Raises:
        AudioUndecodable: the last page is incomplete.
    """
    file.seek(max(0, size - _MAX_OGG_PAGE))
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < _ogg_page_size(page):
        raise _truncated(size)
    return bool(page[5] & _OGG_END)


def _ogg_page_size(page: bytes) -> int:
    """Returns the size that a page has, given its beginning, or more than the bytes given if they are too few."""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return len(page) + 1
    return 27 + page[26] + sum(page[27 : 27 + page[26]])


def _ogg_link_starts(file: FileSpan, size: int) -> list[int]:
    """Returns where the links of a chained Ogg file begin (RFC 3533, section 4).

    Each begins with the first pages of its streams, one directly after the other.
    """
    starts: list[int] = []
    previous_end = -1
    for place in _find_all(file, size, _OGG_FIRST_PAGE):
        if place != previous_end:
            starts.append(place)
        file.seek(place)
        previous_end = place + _ogg_page_size(file.read(27 + 255))
    return starts or [0]


def _find_all(file: FileSpan, size: int, pattern: bytes) -> Iterator[int]:
    """Yields where a pattern occurs in a file."""
    for start in range(0, size, _BLOCK):
        file.seek(start)
        block = file.read(_BLOCK + len(pattern) - 1)
        place = block.find(pattern)
        while place >= 0:
            yield start + place
            place = block.find(pattern, place + 1)
