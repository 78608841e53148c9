"""Mutations of a file's bytes: each is a pure function of the bytes, the name and the seed."""

import json
import random
import re

# Texts that stand in place of a JSON value, as they are.
VALUES = (
    "null", "true", "false", "0", "-1", "1", "2", "1.5", "-0.0", "1e-320", "1e308", "1e999",
    "-1e999", "NaN", "Infinity", "-Infinity", "9223372036854775808", "-9223372036854775809",
    "18446744073709551616", "1" + "0" * 60, "9" * 4400, '""', '" "', '"text"', '"1"', '"-1"',
    '"NaN"', '"\\ud800"', '"\\udfff x"', '"\\u0000"', '"\\u202egpj"', '"../../../etc/passwd"',
    '"/tmp/hostile"', '"a\\nb"', '"<script>alert(1)</script>"', '"{instruction}"', '"{"',
    '"' + "x" * 300 + '"', '"' + "9" * 5000 + '"', '"' + "ab " * 20_000 + '"', "[]", "{}",
    "[null]", "[[]]", "[1, 2, 3]", '["a"]', '{"": null}', '{"a": 1}', "[" * 70 + "]" * 70,
    "[" * 990 + "]" * 990, '{"a":' * 500 + "1" + "}" * 500, "[" * 100_000,
    "[" * 100_000 + "]" * 100_000, "0x10", "'a'", "// comment", "1,", "",
)  # fmt: skip
BYTES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b'"',
    b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\ud800", b"\xe2\x80\xae", b"\xe2\x80\xa8", b"#",
    b"-", b"9" * 400, b"9" * 5000, b"1e999", b"<b>", b"../", b"[" * 3000,
)  # fmt: skip
SIZES = (0, 1, 7, 8, 2**16, 2**31 - 1, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_MARK = "@mutated@"


def mutate(content: bytes, name: str, chance: random.Random) -> bytes:
    """The bytes of a file of that name, mutated in its values, its lines, its frame or anywhere."""
    forms = [_bytes]
    if name.endswith(".json"):
        forms += [_json] * 4
    elif name.endswith(".jsonl"):
        forms += [_json_line] * 4 + [_lines]
    elif name.endswith(".safetensors"):
        forms += [_header] * 3 + [_size]
    elif name.endswith((".tsv", ".txt", ".de", ".en", "SUMS")):
        forms += [_lines] * 2
    return chance.choice(forms)(content, chance)


def _bytes(content: bytes, chance: random.Random) -> bytes:
    kind, size = chance.randrange(7), len(content)
    at, other = sorted((chance.randrange(size + 1), chance.randrange(size + 1)))
    if kind == 0 and size:  # one bit
        at = min(at, size - 1)
        return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    if kind == 1:  # cut off
        return content[:at]
    if kind == 2:  # put in
        return content[:at] + chance.choice(BYTES) + content[at:]
    if kind == 3:  # taken out
        return content[:at] + content[min(other, at + 40) :]
    if kind == 4:  # twice
        return content[:other] + content[at:other] + content[other:]
    if kind == 5:  # written over
        return content[:at] + chance.randbytes(min(8, size - at)) + content[at + 8 :]
    return chance.choice((b"", b"\x00" * size, content + b"\x00", content + b"}", content * 2))


def _json(content: bytes, chance: random.Random) -> bytes:
    """One value at any depth replaced, wrapped, dropped or given twice, or two values swapped."""
    value = json.loads(content)
    places = list(_places(value))
    if not places:
        return chance.choice(VALUES).encode(errors="surrogatepass")
    holder, key = chance.choice(places)
    kind, raw = chance.randrange(9), chance.choice(VALUES)
    if kind <= 3:
        holder[key] = _MARK
    elif kind == 4:
        holder[key], raw = [holder[key]], ""
    elif kind == 5:
        other, elsewhere = chance.choice(places)
        holder[key], other[elsewhere] = json.loads(json.dumps([other[elsewhere], holder[key]]))
    elif kind == 6:
        del holder[key]
    elif kind == 7 and isinstance(holder, dict):
        holder[_MARK] = holder.pop(key)
        raw = chance.choice([text for text in VALUES if text.startswith('"')])
    elif isinstance(holder, dict):
        text = json.dumps(value)
        named = json.dumps(key) + ": "
        return text.replace(named, f"{named}{raw}, {named}", 1).encode(errors="surrogatepass")
    else:
        holder.append(holder[key])
    return json.dumps(value).replace(f'"{_MARK}"', raw).encode(errors="surrogatepass")


def _places(value):
    """(container, key or index) of every value below the outermost."""
    level = [value]
    while level:
        below = []
        for each in level:
            keys = each if isinstance(each, dict) else range(len(each))
            for key in list(keys):
                yield each, key
                if isinstance(each[key], (dict, list)):
                    below.append(each[key])
        level = below


def _json_line(content: bytes, chance: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = chance.randrange(len(lines))
    if lines[at].strip():
        lines[at] = _json(lines[at], chance)
    return b"\n".join(lines)


def _lines(content: bytes, chance: random.Random) -> bytes:
    """Lines or fields dropped, doubled, swapped or changed."""
    lines = content.split(b"\n")
    at, kind = chance.randrange(len(lines)), chance.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        lines.reverse()
    else:
        fields = re.split(rb"([\t ])", lines[at])
        place = chance.randrange(len(fields))
        fields[place] = (b"", b"\t", chance.choice(BYTES), fields[0])[chance.randrange(4)]
        lines[at] = b"".join(fields)
    return b"\n".join(lines)


def _header(content: bytes, chance: random.Random) -> bytes:
    """A value of a safetensors file's header, its size made right again."""
    size = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + size], chance)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _size(content: bytes, chance: random.Random) -> bytes:
    """The size of a safetensors file's header, or an offset in it."""
    if chance.random() < 0.5:
        return chance.choice(SIZES).to_bytes(8, "little") + content[8:]
    size = int.from_bytes(content[:8], "little")
    numbers = list(re.finditer(rb"\d+", content[8 : 8 + size]))
    found = chance.choice(numbers)
    header = content[8 : 8 + found.start()] + str(chance.choice(SIZES)).encode()
    header += content[8 + found.end() : 8 + size]
    return len(header).to_bytes(8, "little") + header + content[8 + size :]
