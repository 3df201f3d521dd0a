"""Drop-ins and settings as people, editors and attackers write them: valid text, and the damage that it can take.

It must not know what is right. The one idea: values are fragments of YAML text, put together by hand and not by a
YAML library, so that every style, anchor, tag and mistake can stand everywhere.
"""

from __future__ import annotations

from hypothesis import strategies as st

Pairs = list[tuple[str, str]]

#: Listen and targets that fit, by a port P, its follower Q.
_FITTING = (
    ("P", "10.88.0.11:80"),
    ("0P", "[10.88.0.11:80]"),
    ("'P'", '["[fd88::11]:80", 10.88.0.11:80]'),
    ("!!str P", "'10.88.0.11:080'"),
    ("P-Q", "10.88.0.11:80-81"),
    ("P - Q", '"[FD88:0::11]:80 - 81"'),
    ("192.0.2.1:P", "10.88.0.11:80"),
    ('"[2001:DB8::1]:P"', '["[fd88::11]:80"]'),
    ("0.0.0.0:P", "10.88.0.11:80"),
    ('"[::]:P"', '"[::192.0.2.9]:80"'),
    ("|-\n      P", ">-\n      10.88.0.11:80"),
)
_MORE = {
    "name": ("web", "007", "'a b'", '"\\u00e9"', "~", "-5", "1e3", "'#x'", "é☃😀", "", '"x\\ty"', "a\xa0b", "x" * 2000),
    "protocol": ("tcp", "[tcp, udp]", "[sctp]", "'udp'", "[udp, sctp, tcp]", "!!seq [tcp]"),
    "masquerade": ("auto", "always", "never", '"never"'),
    "on_change": ("keep", "cut"),
    "comment": ("text", "null", "'it''s'", "0x10", ".nan", "22:80", "2026-11-24", "yes"),
    "sources": ("192.0.2.0/24", "[192.0.2.0/25, 192.0.2.128/25, 2001:db8::/32]", "~", "0.0.0.0/0", "['::/0']"),
    "shadow_listener": ("true", "false", "True", "!!bool true"),
    "reserve": ("true", "FALSE"),
    "isolate": ("true", "false", "TRUE"),
}
#: What may stand in place of a value.
ODD = (
    *("", "~", "[]", "{}", "[[[]]]", "{a: 1}", "*a", "&a x", "&a [*a]", "!!int x", "!!map x", "!!seq 80", "!!null x"),
    *("!!binary aGk=", "!<x%0a%1b> 1", "! 80", "!!int 80", "!!str [80]", "!!float 1.5", "!!timestamp 2026-11-24"),
    *('"\\0"', '"\\e[31m"', '"\\ud800"', '"\\u2028"', "'8080 '", "\uff18\uff10", "٨٠", "0x1F90", "0o17", "1_0", "-1"),
    *("1.5", "1e3"),
    *("99999999999999999999", "9" * 5000, ".nan", ".inf", "true", "no", "NULL", "22:80", "80/tcp", "0", "65536"),
    *("90-80"),
    *("80/" + "x" * 5000, '"80/\\n"', '"*:\\e"', '"9\\n\\n-8"', "8080\t"),
    *("10.0.0.1:80", "10.0.0.1", "010.0.0.1:80", "'[::ffff:1.2.3.4]:80'", "'[fe80::1%eth0]:80'", "'[::1]:80'"),
    *("127.0.0.1:80", "224.0.0.1:80", "255.255.255.255:1", "0.0.0.0:80", "http://x:80", "'*:80'", "'[]:80'", "'[:80'"),
    *("192.0.2.1/24", "10.0.0.0/33", "10.0.0.0/-1", "::/129", "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.255", "1/8"),
    *("[tcp, tcp]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]", "TCP", "6", "|\n      x", ">\n      x", "'open", '"open', "{"),
    *("[", "- -"),
    *("x: y", "&a &b x", "? x", "@x", "`x`", "%x", "x #c", "'\\x'", '"\\x"', "\t", "-\tx", "<<", "a" * 5000, "="),
    *("---"),
)  # fmt: skip
_UNKNOWN = ("protocl", "Listen", "listen ", "<<", "", "~", "[a]", "{a: b}", "a" * 2000, "\u200b", "*a", "? listen", "é")
#: What may be put between any two characters.
SPARKS: tuple[str, ...] = (
    *("\0", "\x01", "\x1b", "\x7f", "\x85", "\xa0", "\u2028", "\u2029", "\ufeff", "\ufffe", "\uffff", "😀", "\r"),
    *("\r\n"),
    *("\t", " ", "\n", "\n\n", "\n  ", ":", ": ", "- ", "&a ", "*a", "!!str ", "!", "%TAG ! x\n", "---\n", "...\n"),
    *("#"),
    *("'", '"', "{", "}", "[", "]", ",", "? ", "|", ">", "<<: *a\n", "é", "\ud800", "\udcff", "0", "9" * 30, "\\"),
)  # fmt: skip


@st.composite
def _pairs(draw: st.DrawFn, number: int) -> Pairs:
    """One valid mapping as key and value texts, with a port of its own."""
    port = 1000 * number + draw(st.integers(0, 900))
    fitting = [text.replace("P", str(port)).replace("Q", str(port + 1)) for text in draw(st.sampled_from(_FITTING))]
    pairs = list(zip(("listen", "targets"), fitting, strict=True))
    for key in draw(st.lists(st.sampled_from(sorted(_MORE)), max_size=3, unique=True)):
        pairs.insert(draw(st.integers(0, len(pairs))), (key, draw(st.sampled_from(_MORE[key]))))
    return pairs


def _damaged(draw: st.DrawFn, pairs: Pairs) -> None:
    """One thing wrong with keys or values."""
    at = draw(st.integers(0, len(pairs) - 1))
    key, value = pairs[at]
    match draw(st.sampled_from(["value", "key", "delete", "double", "other", "wrap"])):
        case "value":
            pairs[at] = (key, draw(st.sampled_from(ODD)))
        case "key":
            pairs[at] = (draw(st.sampled_from(_UNKNOWN)), value)
        case "delete":
            del pairs[at]
        case "double":
            pairs.append((key, draw(st.sampled_from([value, *ODD]))))
        case "other":
            pairs[at] = (key, draw(st.sampled_from(pairs))[1])
        case "wrap":
            pairs[at] = (key, "[" * (depth := draw(st.integers(1, 20))) + value + "]" * depth)


def _item(pairs: Pairs, flow: bool, anchor: str) -> str:
    if flow:
        return f"  - {anchor}{{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}\n"
    lines = [f"    {key}: {value}\n" for key, value in pairs]
    return f"  - {anchor}\n" + "".join(lines) if anchor else "  - " + "".join(lines)[4:]


@st.composite
def dropins(draw: st.DrawFn, harm: int = 2) -> str:
    """A drop-in of up to four mappings with up to so many things wrong in it."""
    text = draw(st.sampled_from(["", "", "# é\n", "---\n", "%YAML 1.2\n---\n", "\ufeff", "\n\n"])) + "mappings:\n"
    for number in range(1, 1 + draw(st.integers(0, 4))):
        pairs = draw(_pairs(number))
        for _ in range(draw(st.integers(0, harm))):
            if draw(st.booleans()) and pairs:
                _damaged(draw, pairs)
        if number > 1 and draw(st.integers(0, 5)) == 0:
            merged = ("*a", "*a", "[*a]", "[*a, *a]", "[]", "x", "*b")
            pairs.insert(0, ("<<", draw(st.sampled_from(merged[: 7 if harm else 4]))))
        anchor = "&a " if number == 1 and draw(st.booleans()) else ""
        text += _item(pairs, draw(st.booleans()), anchor)
    text += draw(st.sampled_from(["", "", "", "...\n", "# end", "--- x\n", "more: 1\n", "\0"][: 8 if harm else 4]))
    for _ in range(draw(st.integers(0, harm))):
        text = _sparked(draw, text)
    return text


def _sparked(draw: st.DrawFn, text: str) -> str:
    """One thing wrong with the characters."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 40)))
    match draw(st.sampled_from(["none", "insert", "insert", "delete", "double", "cut", "tabs"])):
        case "insert":
            return f"{text[:start]}{draw(st.sampled_from(SPARKS))}{text[start:]}"
        case "delete":
            return text[:start] + text[end:]
        case "double":
            return text[:end] + text[start:]
        case "cut":
            return text[:start]
        case "tabs":
            return text.replace("  ", "\t", draw(st.integers(0, 3)))
    return text


@st.composite
def encoded(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> bytes:
    """Text as bytes: mostly UTF-8, and what editors and attackers write else."""
    text = draw(texts)
    how = draw(st.sampled_from(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "utf-7"]))
    return text.encode(how, "surrogatepass" if how.startswith("utf-") and how != "utf-7" else "replace")


def files() -> st.SearchStrategy[bytes]:
    """Drop-ins, and what is none at all."""
    return st.one_of(
        *[encoded(dropins())] * 6, encoded(dropins(harm=0)), st.binary(max_size=200), encoded(st.text(max_size=100))
    )


_SETTINGS = {
    "manage_sysctls": ("true", "false", "no", "'off'", "1", "0"),
    "mark_bit": ("0", "13", "31", "+7"),
    "on_stop": ("remove", "keep"),
    "group": ("nfportd", "'1000'", '""', '"a\\0b"', '"é"', "a" * 5000),
}
_RULE = {
    "uid": ("1000", "0", "4294967294"),
    "gid": ("100", "0"),
    "write": ("true", "false", "yes"),
    "owners": ("ci-", '""', "é"),
    "ports": ("[80]", "[8000-8999, 1-1]", "['443']", "[]"),
    "protocols": ("[tcp]", "[udp, sctp]"),
    "listen": ("[192.0.2.0/24]", '["::/0"]'),
    "targets": ("[10.88.0.0/16]", '["fd88::/64", 10.0.0.1]'),
}


@st.composite
def settings_files(draw: st.DrawFn) -> str:
    """The daemon's own file, with access rules, and up to two things wrong in it."""

    def some(of: dict[str, tuple[str, ...]], first: tuple[str, ...] = ()) -> Pairs:
        keys = [*first, *draw(st.lists(st.sampled_from(sorted(of)), max_size=3, unique=True))]
        pairs = [(key, draw(st.sampled_from(of[key]))) for key in dict.fromkeys(keys)]
        if pairs and draw(st.integers(0, 3)) == 0:
            _damaged(draw, pairs)
        return pairs

    text = "".join(f"{key}: {value}\n" for key, value in some(_SETTINGS))
    if draw(st.booleans()):
        text += "access:\n"
        for _ in range(draw(st.integers(0, 3))):
            text += _item(some(_RULE, (draw(st.sampled_from(["uid", "gid"])),)), draw(st.booleans()), "")
    return _sparked(draw, text) if draw(st.integers(0, 3)) == 0 else text
