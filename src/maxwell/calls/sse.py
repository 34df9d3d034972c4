"""Server-sent events, as far as chat streams use them: bytes in, data payloads out.

Follows the WHATWG parsing rules for `data:` lines, comments and line ends. `event:`, `id:` and `retry:` lines
say nothing that a chat stream needs and are passed over. However the bytes are cut, the payloads are the
same.
"""

from __future__ import annotations

# Longest payload of one event, in bytes. A server that never ends a line must not fill the memory.
MAX_EVENT = 16 * 1024 * 1024

# A line may be longer than its payload by a byte order mark and the field's name.
_MAX_LINE = MAX_EVENT + 16
_BOM = b"\xef\xbb\xbf"

# As integers: looking one up among bytes is several times faster than looking up a bytes object.
_LF = 10
_CR = 13


class SSEParser:
    """Turns one response body, piece by piece, into data payloads. After an error it is spent."""

    __slots__ = ("_after_cr", "_clean", "_data", "_line", "_size", "_started")

    def __init__(self) -> None:
        self._line = bytearray()  # a line whose end has not come yet
        self._data: list[bytes] = []  # data lines of the event being read
        self._size = 0  # bytes in `_data`, line ends included
        self._after_cr = False  # the last byte was CR: a LF now belongs to it
        self._started = False  # the first line is behind us, and with it any byte order mark
        self._clean = True  # nothing of the above is pending: the fast path may look at the next chunk

    def feed(self, chunk: bytes) -> list[bytes]:
        """Payloads of the events that `chunk` completes, in order. An event without data gives none.

        Raises:
            ValueError: An event is longer than `MAX_EVENT`.
        """
        # What servers nearly always send: whole events, each of them one `data: ` line, ended by two LF. When
        # the LFs that this reading explains are all there are, it is the only reading.
        size = len(chunk)
        if self._clean and chunk[:6] == b"data: " and _CR not in chunk and size <= MAX_EVENT:
            if chunk[-1] == _LF and chunk.find(b"\n") == size - 2:
                self._started = True
                return [chunk[6:-2]] if size > 8 else []
            if chunk[-2:] == b"\n\n":
                payloads = chunk[6:-2].split(b"\n\ndata: ")
                if chunk.count(b"\n") == 2 * len(payloads):
                    self._started = True
                    return payloads if b"" not in payloads else [p for p in payloads if p]
        return self._feed_lines(chunk)

    def end(self) -> bytes | None:
        """What was left when the stream ended: the payload of an event whose closing blank line never came.

        The standard throws it away; some servers simply forget that line, so the caller decides. It may be
        cut short. None when nothing was pending.
        """
        if self._line:
            line = bytes(self._line)
            self._line.clear()
            self._take(line)
        payload = self._join()
        self._clean = True
        self._after_cr = False
        return payload or None

    def _feed_lines(self, chunk: bytes) -> list[bytes]:
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        out: list[bytes] = []
        if chunk:
            lines = chunk.splitlines()  # on bytes: LF, CR and CRLF only
            last = chunk[-1:]
            rest = b"" if last in b"\r\n" else lines.pop()
            self._after_cr = last == b"\r"
            for line in lines:
                self._end_line(line, out)
            if rest:
                self._line += rest
                if len(self._line) > _MAX_LINE:
                    raise _too_long()
        self._clean = not (self._after_cr or self._line or self._data)
        return out

    def _end_line(self, line: bytes, out: list[bytes]) -> None:
        if self._line:
            self._line += line
            line = bytes(self._line)
            self._line.clear()
        if line:
            self._take(line)
            return
        self._started = True
        if self._data:
            payload = self._join()
            if payload:
                out.append(payload)

    def _take(self, line: bytes) -> None:
        if len(line) > _MAX_LINE:
            raise _too_long()
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if line[:5] == b"data:":
            value = line[6:] if line[5:6] == b" " else line[5:]
        elif line == b"data":
            value = b""
        else:
            return
        self._size += len(value) + bool(self._data)
        if self._size > MAX_EVENT:
            raise _too_long()
        self._data.append(value)

    def _join(self) -> bytes:
        payload = b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        return payload


def _too_long() -> ValueError:
    return ValueError(
        f"the server sent an event of more than {MAX_EVENT >> 20} MiB; this is not a chat stream"
    )
