"""Bytes as text: UTF-8 unless another encoding is named; what is not is recognised by its bytes."""

import codecs
import contextlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gpt2cli.errors import InputError, UsageError

UTF8 = "utf-8"
# What prints the content of a packed file, by the end of its name.
UNPACK = {".gz": "gunzip -c", ".bz2": "bunzip2 -c", ".zst": "zstd -dc"}
LOOK_AHEAD = 1 << 22  # bytes behind the first that is not UTF-8, to tell the encoding by
_ASCII = bytes(range(128))
_CYRILLIC_LOWER = re.compile("[а-яё]")
_CYRILLIC_UPPER = re.compile("[А-ЯЁ]")
_KANA = re.compile("[ぁ-ヿ]")


class WrongEncodingError(InputError):
    """A text that is in another encoding than its reader was told."""


def require_encoding(name: str) -> str:
    """The name as Python spells it. Raises UsageError for what is no encoding of text."""
    with contextlib.suppress(LookupError, ValueError, UnicodeError):
        found = codecs.lookup(name)
        if found._is_text_encoding:
            return UTF8 if found.name in ("utf-8", "utf-8-sig", "ascii") else found.name
    raise UsageError(
        f"{name!r} is no encoding that Python knows",
        "examples are utf-8, cp1252, latin-1, utf-16, cp1251, shift_jis and gb18030",
        "--encoding cp1252, in a recipe data.encoding=cp1252",
    )


def decode_utf8(
    data: bytes,
    name: str,
    offset: int = 0,
    *,
    line: int = 0,
    more: Callable[[int], bytes] | None = None,
    has_option: bool = True,
) -> str:
    """The UTF-8 text `data`, which begins at byte `offset` of `name`; a byte order mark is dropped.

    Raises WrongEncodingError with the offset of the first byte that is not text, and its line if `line`,
    the one that `data` begins with, is given. `more` reads what follows, to recognise the encoding by.
    The fix is the option that names the encoding, or without `has_option` a command that converts the file.
    """
    place, what = data.find(b"\0"), "a NUL byte"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if place < 0 or error.start < place:
            place, what = error.start, "not UTF-8"
    if place < 0:
        return text if offset else text.removeprefix("\ufeff")
    line += data.count(b"\n", 0, place) if line else 0
    where = f"{name}:{line}" if line else name
    seen = data + (more(LOOK_AHEAD) if more else b"")
    why, encoding = recognised(seen, place, offset)
    if encoding:
        fix = named_encoding(encoding) if has_option else conversion(name, encoding)
    elif why == _DAMAGED:
        fix = conversion(name, "utf-8", "-c")
    else:
        fix = "name text files only" if why == _BINARY or not has_option else _OTHER
    raise WrongEncodingError(f"{where}: {what} at byte {offset + place}", why, fix)


class Utf8Reader:
    """The text of a stream of UTF-8 bytes, part by part; a byte order mark is dropped. With `line`, the
    number of its first line, errors name the line.
    """

    def __init__(self, stream: BinaryIO, name: str, line: int = 0) -> None:
        self._stream, self._name, self._line = stream, name, line
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")

    def read(self, n: int) -> str:
        """The text of the next `n` bytes, or of more if that is none; "" at the end. Raises as
        `decode_utf8`.
        """
        while True:
            block = self._stream.read(n)
            held = self._decoder.getstate()[0]
            try:
                text = self._decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text:
                start = self._offset - len(held)
                decode_utf8(held + block, self._name, start, line=self._line, more=self._stream.read)
            text = text if self._offset else text.removeprefix("\ufeff")
            self._offset += len(block)
            self._line += block.count(b"\n") if self._line else 0
            if text or not block:
                return text


_BINARY, _DAMAGED = "the file is binary", "some of it is UTF-8, and some is damaged"
_OTHER = "name its encoding, such as --encoding cp1252, in a recipe data.encoding=cp1252"


def recognised(data: bytes, place: int, offset: int = 0) -> tuple[str, str]:
    """What `data`, which begins at byte `offset` of a file, probably is, as it is no UTF-8 from `place` on;
    and its encoding, or "".
    """
    if not offset and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-32" if data[2:4] == b"\0\0" else "utf-16"
        return f"it begins like {encoding.upper()}", encoding
    if b"\0" in data[: place + 8192]:
        # In UTF-16, every second byte of English text is 0.
        for encoding, high in (("utf-16-le", data[1:8192:2]), ("utf-16-be", data[0:8192:2])):
            if 2 * high.count(0) > len(high):
                return f"it looks like {encoding.upper()}", encoding
    if encoding := _utf16(data):
        return f"it looks like {encoding.upper()}", encoding
    if b"\0" in data[: place + 8192]:
        return _BINARY, ""
    if not data[:place].isascii():
        return _DAMAGED, ""
    encoding = _single_byte(data) or _east_asian(data)
    if encoding:
        return f"it is in another encoding, such as {_SPOKEN.get(encoding, encoding)}", encoding
    return "it is in another encoding, or binary", ""


def _utf16(data: bytes) -> str:
    """UTF-16 without a mark, in any script, or "". Its high bytes are control characters, which text in bytes
    has not, and what it decodes to are letters of one script, which what is no text does not.
    """
    head = data[:4096]
    is_ascii = len(re.findall(rb"[\t\n\r\x20-\x7e]", head)) > 0.8 * len(head)
    if not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", head):
        return ""
    for encoding in ("utf-16-le", "utf-16-be"):
        with contextlib.suppress(UnicodeDecodeError):
            text = head[: len(head) & ~1].decode(encoding)
            n_known = sum(c.isalnum() or c in _MARKS for c in text)
            pages = {ord(c) >> 8 for c in text if c.isalpha()}
            is_one_script = len(pages - {0}) <= 2 or pages <= _EAST_ASIAN
            # Kana's bytes are ASCII, nearly all; so are those of a text with a NUL here and there.
            is_told = not is_ascii or len(re.findall("[\u3000-\u30ff]", text)) > 0.1 * len(text)
            if len(text) >= 8 and n_known > 0.95 * len(text) and is_one_script and is_told:
                return encoding
    return ""


_EAST_ASIAN = {0, *range(0x30, 0xD8), 0xFF}  # high bytes of kana, CJK, Hangul and full-width letters
_MARKS = "\t\n\r .,;:!?-—–'\"()«»“”‘’…、。，！？「」（）：；"
_SPOKEN = {"cp1252": "Windows-1252", "latin-1": "Latin-1", "cp1251": "Windows-1251", "shift_jis": "Shift JIS"}


def named_encoding(encoding: str) -> str:
    return f"--encoding {encoding}, in a recipe data.encoding={encoding}"


def _single_byte(data: bytes) -> str:
    """Windows-1252 or Latin-1 for text in Latin letters, which is mostly ASCII; Windows-1251 or KOI8-R for
    Cyrillic text, which is mostly lower case.
    """
    high = data.translate(None, _ASCII)
    if 3 * len(high) < len(data):
        if not re.search(rb"[\x80-\x9f]", data):
            return "latin-1"
        # Five bytes are nothing in Windows-1252.
        return "latin-1" if re.search(rb"[\x81\x8d\x8f\x90\x9d]", data) else "cp1252"
    for encoding in ("cp1251", "koi8-r"):
        text = high.decode(encoding, "ignore")
        lower, upper = len(_CYRILLIC_LOWER.findall(text)), len(_CYRILLIC_UPPER.findall(text))
        if lower + upper > 0.9 * len(high) and lower > 2 * upper:
            return encoding
    return ""


def _east_asian(data: bytes) -> str:
    """Shift JIS or EUC-JP by their kana, else GB 18030 if all of it decodes."""
    for encoding in ("shift_jis", "euc_jp"):
        text = codecs.getincrementaldecoder(encoding)("ignore").decode(data)
        high = sum(character > "\x7f" for character in text)
        half_width = sum("\uff61" <= character <= "\uff9f" for character in text)
        if len(_KANA.findall(text)) > 0.2 * high and half_width < 0.2 * high:
            return encoding
    try:
        text = codecs.getincrementaldecoder("gb18030")("strict").decode(data)
    except UnicodeDecodeError:
        return ""
    high = sum(character > "\x7f" for character in text)
    return "gb18030" if high and sum("一" <= c <= "鿿" for c in text) > 0.6 * high else ""


def conversion(name: str, encoding: str, *options: str) -> str:
    """The shell command that writes a UTF-8 copy of the file `name`, of the same kind."""
    path = Path(name)
    spoken = {"latin-1": "LATIN1", "utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(
        encoding, encoding.upper()
    )
    iconv = shlex.join(["iconv", *options, "-f", spoken, "-t", "UTF-8"])
    if not path.exists():
        return f"pipe it through {iconv}"  # standard input
    unpack = UNPACK.get(path.suffix.lower(), "")
    plain = path.with_suffix("") if unpack else path
    copy = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix}")))
    quoted = shlex.quote(name)
    return f"{unpack} {quoted} | {iconv} > {copy}" if unpack else f"{iconv} {quoted} > {copy}"
