# SPDX-License-Identifier: Apache-2.0
"""Which packets of a video give the wanted frames, found by looking at headers alone.

Decoding every frame from the first one on is always right, and slow. Two kinds of packets are not needed:

- those before the last start at or before the first wanted frame. A start is a key frame across which no frame
  refers to another: an IDR frame of H.264, or an I-VOP of MPEG-4 part 2 that no B-VOP follows at once;
- frames to which no other refers, unless they are wanted themselves.

Frame n stays the n-th that a decoder of the whole file puts out. That is certain only where each packet is one frame
and the order of display is known. So whatever is out of the ordinary raises Uncertain, and everything must be decoded:
fields, several or empty frames in a packet (but for the way in which XviD packs a B-VOP), edit lists, parameters that
change on the way, time stamps of H.264 that are missing, repeated or in disorder. What remains is damage by which the
decoder loses a frame without a word: where that is left out, the frames behind it keep their numbers.
"""

from bisect import bisect, bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import av
from av.bitstream import BitStreamFilterContext

# No longer group of frames from one start to the next is looked through: its packets wait in memory.
_LONGEST_GROUP = 1000
# H.264 decodes at most this many frames before one that is shown earlier.
_DEEPEST_ORDER = 16
# An MPEG-4 frame without content, which gives no picture, is not longer than this many bytes.
_EMPTY_VOP = 20

# XviD writes it behind the first frame where B-VOPs are packed; it gives no picture.
_SKIPPED_VOP = b"\x7f"
_VOP = b"\x00\x00\x01\xb6"
_I_VOP, _P_VOP, _B_VOP = 0, 1, 2
_SLICE, _IDR_SLICE, _INFORMATION, _DELIMITER, _FILLER = 1, 5, 6, 9, 12


class Uncertain(Exception):  # noqa: N818 - it is no error
    """Only decoding everything tells which frame is which."""


@dataclass
class _Unit:
    """A packet that is one frame. `number` is the frame's; -1 until it is known."""

    packet: av.Packet
    is_start: bool
    is_reference: bool
    number: int = -1


def needed(stream: av.VideoStream, packets: Iterable[av.Packet], wanted: list[int]) -> Iterator[tuple[av.Packet, int]]:
    """The packets to decode for the frames `wanted` (ascending), in this order, each with the number of its frame.

    The first packet of all is always among them, for what it tells of the encoder. The frames must come out in the
    order of their numbers. Raises Uncertain, even after some packets.
    """
    last, first = wanted[-1], 0
    context = stream.codec_context
    if context.name == "mpeg4" and not context.reorder_depth and not _has_start(stream, wanted):
        # Without B-VOPs there is nothing else to leave out.
        yield from zip(_ordinary(packets), range(last + 1), strict=False)
        return
    for group in _groups(_units(stream, packets), last):
        end = first + len(group)
        if not group[0].is_start:
            raise Uncertain
        if end > wanted[0]:
            _number(group, first, context)
            inside = {index for index in wanted if first <= index < end}
            stop = 1 + max((i for i, unit in enumerate(group) if unit.number in inside), default=-1)
            for unit in group[: stop if end > last else end]:
                if unit.is_reference or unit.number in inside:
                    yield unit.packet, unit.number
        elif first == 0:
            yield group[0].packet, 0
        if end > last:
            return
        first = end
    raise Uncertain


def _groups(units: Iterator[_Unit], last: int) -> Iterator[list[_Unit]]:
    """The frames from each start to the next, in the order of decoding, up to a bit behind frame `last`."""
    group: list[_Unit] = []
    for unit in islice(units, last + 1 + _DEEPEST_ORDER):
        if unit.is_start and group:
            yield group
            group = []
        if len(group) >= _LONGEST_GROUP:
            raise Uncertain
        group.append(unit)
    if group:
        yield group


def _number(group: list[_Unit], first: int, context: av.VideoCodecContext) -> None:
    """Number the frames in the order of display. The decoder must be ready to wait as long as that takes."""
    if context.name == "mpeg4":
        _number_mpeg4(group, first)
        if context.reorder_depth < 1 and not all(unit.is_reference for unit in group):
            raise Uncertain
        return
    times = [unit.packet.pts for unit in group if unit.packet.pts is not None]
    if len(set(times)) < len(group):
        raise Uncertain
    ordered: list[int] = []
    depth = 0
    for pts in times:
        depth = max(depth, len(ordered) - bisect(ordered, pts))
        insort(ordered, pts)
    # Where the decoder is told of another order but time stamps show none, they may be those of decoding.
    if depth > context.reorder_depth or (depth == 0 < context.reorder_depth and len(group) > 2):
        raise Uncertain
    for unit, pts in zip(group, times, strict=True):
        unit.number = first + bisect_left(ordered, pts)


def _has_start(stream: av.VideoStream, wanted: list[int]) -> bool:
    """Whether the file's index has a key frame to start at, other than the first."""
    return any(entry.is_keyframe for entry in islice(stream.index_entries, 1, wanted[0] + 1))


def _number_mpeg4(group: list[_Unit], first: int) -> None:
    """B-VOPs are shown at once, others when the next of them has been decoded."""
    waiting = group[0]
    for number, unit in enumerate(group[1:], first):
        shown = waiting if unit.is_reference else unit
        shown.number = number
        waiting = unit if unit.is_reference else waiting
    waiting.number = first + len(group) - 1


def _units(stream: av.VideoStream, packets: Iterable[av.Packet]) -> Iterator[_Unit]:
    context = stream.codec_context
    extradata = context.extradata or b""
    if context.name == "mpeg4":
        return _units_mpeg4(stream, packets)
    # Parameters must stand in front (avcC, whose first byte is 1). x264's version changes the decoding of 4:4:4 alone.
    if (
        context.name == "h264"
        and context.pix_fmt in ("yuv420p", "yuvj420p")
        and extradata[:1] == b"\x01"
        and len(extradata) > 4
    ):
        length = 1 + (extradata[4] & 3)
        return (_parse_h264(packet, length) for packet in _ordinary(packets))
    raise Uncertain


def _ordinary(packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    is_over = False
    for packet in packets:
        if is_over or packet.is_discard or packet.is_corrupt:
            raise Uncertain
        is_over = packet.size == 0  # as at the end, and nowhere else
        if not is_over:
            yield packet


def _units_mpeg4(stream: av.VideoStream, packets: Iterable[av.Packet]) -> Iterator[_Unit]:
    unpack = BitStreamFilterContext("mpeg4_unpack_bframes", stream) if stream.codec_context.reorder_depth else None
    previous: _Unit | None = None
    for packet in _ordinary(packets):
        for content in unpack.filter(packet) if unpack else (packet,):
            if bytes(content) == _SKIPPED_VOP:
                continue
            unit = _parse_mpeg4(content)
            if previous:
                previous.is_start &= unit.is_reference
                yield previous
            previous = unit
    if previous:
        yield previous


def _parse_mpeg4(packet: av.Packet) -> _Unit:
    content = bytes(packet)
    start = content.find(_VOP)
    kind = content[start + 4] >> 6 if 0 <= start < len(content) - _EMPTY_VOP else -1
    if kind not in (_I_VOP, _P_VOP, _B_VOP) or content.find(_VOP, start + 4) >= 0:
        raise Uncertain
    return _Unit(packet, kind == _I_VOP, kind != _B_VOP)


def _parse_h264(packet: av.Packet, length: int) -> _Unit:
    """`length` is the number of bytes that tell the size of each unit of the stream."""
    content = bytes(packet)
    position = frames = 0
    is_start = is_reference = False
    while position + length + 2 <= len(content):
        size = int.from_bytes(content[position : position + length], "big")
        position += length
        kind = content[position] & 31
        if kind in (_SLICE, _IDR_SLICE):
            frames += content[position + 1] >> 7  # the slice begins with macroblock 0
            is_start |= kind == _IDR_SLICE
            is_reference |= content[position] & 0x60 > 0
        elif kind not in (_INFORMATION, _DELIMITER, _FILLER):
            raise Uncertain
        position += size
    if frames != 1 or position != len(content):
        raise Uncertain
    return _Unit(packet, is_start, is_reference)
