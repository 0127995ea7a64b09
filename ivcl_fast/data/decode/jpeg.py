"""Motion-JPEG frames as stand-alone JPEG images.

Motion-JPEG may leave out the Huffman tables, which are then the standard ones; Blender, which
rendered CATER, does. FFmpeg and libjpeg-turbo fill them in themselves, other decoders refuse.
"""

from __future__ import annotations

from ivcl_fast.data.decode.images import JPEG_START

DEFINE_HUFFMAN_TABLES = 0xC4
START_OF_SCAN = 0xDA

# The tables of ITU-T T.81, Annex K.3: class and id, number of codes of 1 to 16 bits, values.
_STANDARD_TABLES = """
    00 00010501010101010100000000000000 000102030405060708090a0b
    01 00030101010101010101010000000000 000102030405060708090a0b
    10 0002010303020403050504040000017d 01020300041105122131410613516107227114328191a1082342b1c115
    52d1f02433627282090a161718191a25262728292a3435363738393a434445464748494a535455565758595a636465
    666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9
    bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa
    11 00020102040403040705040400010277 000102031104052131061241510761711322328108144291a1b1c10923
    3352f0156272d10a162434e125f11718191a262728292a35363738393a434445464748494a535455565758595a6364
    65666768696a737475767778797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7
    b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa
"""


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


STANDARD_HUFFMAN_TABLES = _segment(DEFINE_HUFFMAN_TABLES, bytes.fromhex(_STANDARD_TABLES))


def with_huffman_tables(jpeg: bytes) -> bytes:
    """The image with the standard Huffman tables put in, if it brings none.

    What is no JPEG comes back as it is.
    """
    if not jpeg.startswith(JPEG_START):
        return jpeg
    position = len(JPEG_START)
    while position + 4 <= len(jpeg):
        marker = jpeg[position + 1]
        if marker == DEFINE_HUFFMAN_TABLES:
            return jpeg
        if marker == START_OF_SCAN:
            return jpeg[:position] + STANDARD_HUFFMAN_TABLES + jpeg[position:]
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return jpeg
