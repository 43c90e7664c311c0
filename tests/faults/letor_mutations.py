"""Made-up LETOR files and ways to spoil them, drawn from a `random.Random`."""

import bz2
import gzip
import lzma
import os
from pathlib import Path

NUMBERS = (
    "0 1 -1 +1 -0 1. .5 -.5 +.5e3 . e5 1e 1e5 1E+05 1e-05 5e-324 1e-400 1e38 3.4028235e38 3.5e38 "
    "1e39 1e400 1e99999999 9007199254740993 90071992.54740993 0.1234567890123456789 "
    "00000000000000000001 123456789 12345678.87654321 000.0000 1_000 1,5 0x1p3 0x10 1e5e5 1.2.3 "
    "1-2 1+2 --1 +-1 nan NaN inf -inf Infinity NULL null None True 1f 1d 1/2 ½ ١٢ ２ 1\u00a0 "
    "\u2212" + "1" * 400 + " 0." + "0" * 330 + "1"
).encode().split(b" ")  # fmt: skip
INDICES = (
    "0 1 2 3 00 01 000000001 +1 -1 -0 1.0 1e1 1_0 999 99999 999999 1000000 1000001 2147483647 "
    "2147483648 4294967297 9223372036854775808 99999999999999999999999 ٣ a qid nan"
).encode().split(b" ")  # fmt: skip
LABELS = b"0 1 2 31 31.0 31.0000001 32 -1 -0 0.5 +2 2. 1e1 1e-50 nan inf NULL 1:2 1_0 qid:1".split()
QUERIES = (
    b"qid: qid:1 qid:2 qid:01 qid:a:b qid:\xff qid:\xc3\xa4 QID:1 qid=1 qid :1 qid:1# 1:1".split(
        b" "
    )
)
BLANKS = [b"\t", b"  ", b"\r", b"\v", b"\f", b"\0", b"\x1c", b"\xc2\xa0", b"\xe2\x80\xa8", b"\x85"]
BLANKS += [b"", b",", b";"]
ENDS = [b"\r\n", b"\n\r", b"\r", b"\r\r\n", b"\n\n", b"\x0b\n", b" \n", b"", b"\x00\n", b"\x1a\n"]
COMMENTS = [b"#", b"##", b" # docid = 1:2 inc = 1", b"#\0", b"# a\rb", b"#\xff\xfe", b"# qid:7 3:4"]
BYTES = b"0123456789 .:-+eE#\n\r\t\0\x1a_nqid\xff\xef"
COMPRESSORS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def make_files():
    """Regular and sparse, with comments, of several ends and notations."""
    dense = b"".join(
        b"%d qid:%d " % (d % 3, d // 4)
        + b" ".join(b"%d:0.%06d" % (k, (d * k * 7919) % 10**6) for k in range(1, 9))
        + b"\n"
        for d in range(16)
    )
    sparse = b"".join(
        b"%d.0 qid:q%d " % (d % 5, d // 3)
        + b" ".join(b"%d:%d" % (k, d - k) for k in range(1 + d % 4, 90, 17))
        + b"\n"
        for d in range(12)
    )
    exponents = b"".join(
        b"%d qid:%d 1:%de-05 3:-1.%dE+3 7:1234567890.%d # doc %d\n" % (d % 2, d // 5, d, d, d, d)
        for d in range(15)
    )
    singles = b"".join(b"1 qid:%d 1:%d 2:0\n" % (d, d) for d in range(40))
    widening = b"".join(b"1 qid:1 %d:%d # %d\n" % (d, d, d) for d in range(1, 25))
    return [
        dense,
        sparse,
        exponents,
        singles,
        widening,
        dense.replace(b"\n", b" #docid = GX012-34 inc = 1 prob = 0.5\n"),
        sparse.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + exponents,
        b"# made up\n\n" + dense.replace(b" 8:", b" 0:"),
        singles.rstrip(b"\n"),
        b"0 qid:1\n1 qid:1 5:1\n\n",
        *_real_files(),
    ]


def _real_files():
    """The first lines of the files that LETOR_FUZZ_FILES names, if it is set."""
    for name in filter(None, os.environ.get("LETOR_FUZZ_FILES", "").split(os.pathsep)):
        with Path(name).open("rb") as stream:
            yield b"".join(stream.readline() for _ in range(4))


def mutate(rng, content):
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        content = rng.choice(MUTATIONS)(rng, content)
    return content


def compress(rng, content):
    """Compressed, as one stream or two, and in half of the cases damaged."""
    pack = COMPRESSORS[rng.choice(list(COMPRESSORS))]
    cut = rng.randrange(len(content) + 1)
    packed = pack(content) if rng.random() < 0.7 else pack(content[:cut]) + pack(content[cut:])
    if rng.random() < 0.5:
        packed = rng.choice((flip_bit, delete_bytes, insert_bytes, cut_short))(rng, packed)
    return packed


def flip_bit(rng, content):
    if not content:
        return content
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_byte(rng, content):
    if not content:
        return content
    place = rng.randrange(len(content))
    return content[:place] + bytes([rng.choice(BYTES)]) + content[place + 1 :]


def insert_bytes(rng, content):
    place = rng.randrange(len(content) + 1)
    inserted = bytes(rng.choice(BYTES) for _ in range(rng.choice((1, 1, 2, 5))))
    return content[:place] + inserted + content[place:]


def delete_bytes(rng, content):
    place = rng.randrange(len(content) + 1)
    return content[:place] + content[place + rng.choice((1, 1, 2, 10, 100)) :]


def cut_short(rng, content):
    return content[: rng.randrange(len(content) + 1)]


def on_lines(change):
    def mutation(rng, content):
        lines = content.splitlines(keepends=True)
        return b"".join(change(rng, lines)) if lines else content

    return mutation


def on_a_line(change):
    def on_list(rng, lines):
        place = rng.randrange(len(lines))
        return [*lines[:place], change(rng, lines[place]), *lines[place + 1 :]]

    return on_lines(on_list)


def on_a_token(change):
    def on_line(rng, line):
        tokens = line.split(b" ")
        place = rng.randrange(len(tokens))
        return b" ".join([*tokens[:place], *change(rng, tokens[place]), *tokens[place + 1 :]])

    return on_a_line(on_line)


def repeat_line(rng, lines):
    line = rng.choice(lines)
    place = rng.randrange(len(lines) + 1)
    return [*lines[:place], *[line] * rng.choice((1, 1, 3)), *lines[place:]]


def swap_lines(rng, lines):
    lines = list(lines)
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return lines


def drop_line(rng, lines):
    place = rng.randrange(len(lines))
    return [*lines[:place], *lines[place + 1 :]]


def end_lines(rng, lines):
    end = rng.choice(ENDS)
    share = rng.choice((0.1, 1.0))
    return [line.rstrip(b"\r\n") + end if rng.random() < share else line for line in lines]


def set_blanks(rng, line):
    blank = rng.choice(BLANKS)
    return line.replace(b" ", blank, rng.choice((1, -1)))


def set_label(rng, line):
    return rng.choice(LABELS) + b" " + line.partition(b" ")[2]


def set_query(rng, line):
    parts = line.split(b" ")
    return b" ".join([parts[0], rng.choice(QUERIES), *parts[2:]])


def add_comment(rng, line):
    return line.rstrip(b"\n") + rng.choice(COMMENTS) + b"\n"


def lengthen(rng, line):
    """Around the limit of a line: by blanks, a comment, fields or a number."""
    size = rng.choice((500, 3900, 3990, 4000, 4100, 9000))
    end = b"\n" if line.endswith(b"\n") else b""
    body = line.rstrip(b"\r\n")
    fill = rng.choice((b" ", b"#", b"0", b" 1:1", b" 7:2.5", b"\t\v", b" ####"))
    return (body + fill * (size // len(fill)))[:size] + end


def set_value(rng, token):
    index, colon, _ = token.partition(b":")
    return [index + colon + rng.choice(NUMBERS)] if colon else [rng.choice(NUMBERS)]


def set_index(rng, token):
    return [rng.choice(INDICES) + b":" + token.partition(b":")[2]]


MUTATIONS = (
    flip_bit, set_byte, insert_bytes, delete_bytes, cut_short,
    on_lines(repeat_line), on_lines(swap_lines), on_lines(drop_line), on_lines(end_lines),
    on_a_line(set_blanks), on_a_line(set_label), on_a_line(set_query), on_a_line(add_comment),
    on_a_line(lengthen), on_a_line(lambda rng, line: b"\n" * rng.choice((1, 3)) + line),
    on_a_token(set_value), on_a_token(set_value), on_a_token(set_index), on_a_token(set_index),
    on_a_token(lambda rng, token: [token, token]), on_a_token(lambda rng, token: []),
    on_a_token(lambda rng, token: [token[: rng.randrange(len(token) + 1)]]),
    lambda rng, content: b"\xef\xbb\xbf" + content,
    lambda rng, content: content + rng.choice((b"\0" * 20, b"\x1a", b"\n" * 9, b" ", b"#")),
    lambda rng, content: content.decode("latin-1").encode(rng.choice(("utf-16", "utf-16-le"))),
)  # fmt: skip
