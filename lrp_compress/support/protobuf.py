"""Counts the parts of a file of protocol buffers before it is parsed: an empty one has two bytes and takes hundreds."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds on the wire
MOST_PARTS = 2**16  # names, numbers, nodes and so on; the ONNX file of an IMPALA has two thousand
NUMBERS = 256  # bytes of packed integers that count as one part
INTEGERS = {
    getattr(FieldDescriptor, f"TYPE_{name}")
    for name in ("INT32", "INT64", "UINT32", "UINT64", "SINT32", "SINT64", "BOOL", "ENUM")
}


def check_parts(content: bytes, kind: Descriptor) -> None:
    """Refuse a message with more than `MOST_PARTS` fields in it and in all messages within.

    Parameters
    ----------
    content : bytes
        The message as it is stored.
    kind : Descriptor
        Of the message, as in `onnx.ModelProto.DESCRIPTOR`.

    Raises
    ------
    ValueError
        If there are more, or the content is no such message.
    """
    left = MOST_PARTS
    messages = [(memoryview(content), kind)]
    while messages:
        message, kind = messages.pop()
        place = 0
        while place < len(message):
            tag, place = _varint(message, place)
            field, wire = kind.fields_by_number.get(tag >> 3), tag & 7
            left -= 1
            if wire == VARINT:
                _, place = _varint(message, place)
            elif wire in (FIXED64, FIXED32):
                place += 8 if wire == FIXED64 else 4
            elif wire == BYTES:
                size, start = _varint(message, place)
                place = start + size
                if field is not None and field.message_type is not None:
                    messages.append((message[start:place], field.message_type))
                elif field is not None and field.type in INTEGERS:
                    left -= size // NUMBERS  # of one byte each in the file, and of eight in memory
            else:
                raise ValueError(f"it has a field of the unknown kind {wire}")
            if place > len(message):
                raise ValueError("it ends within a field")
            if left < 0:
                raise ValueError(f"it has more than {MOST_PARTS} parts")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, and where it ends."""
    number = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
    raise ValueError("it ends within a number")
