#!/usr/bin/env python3
"""Turns the dictionary GCIDE, as dictd stores it, into plain English text.

    gzip -dc gcide.dict.dz | clean_gcide.py TRAIN VALIDATION

An entry becomes a few lines, the headword's first and then one a paragraph, and ends with a blank
line. Every hundredth entry goes to VALIDATION. Dropped are pronunciations, etymologies, inflections,
the marks of where a paragraph comes from, entries that are a bare headword, and the file's preface.
Needs nothing but Python's own library.
"""

import re
import sys
import unicodedata

VALIDATION_EVERY = 100

HEADWORD = re.compile(r"^[^\s\\].*\\")
# "[1913 Webster]", "[WordNet 1.5 +PJC]", "[AS]": who wrote the paragraph.
SOURCE = re.compile(r"\[(?:[^\[\]]*(?:1913|WordNet|PJC|RDH|RHUD|MI11|GCIDE|Century Dict|Wiktionary)[^\[\]]*|AS)\]")
# Names of the next entry that strayed behind the last source of this one.
STRAYS = re.compile(r"(\[[^\[\]]*(?:1913|WordNet|PJC)[^\[\]]*\])(?: [A-Za-z][\w'-]*)+$")
SYLLABLES = re.compile(r"\\[^\\]*\\")  # \Con*cep"tive\
PRONUNCIATION = re.compile(r'\s*\([^()]*[\[*"?`][^()]*\)')  # (d[i^]k*t[a^]m"n[u^]s), (?)
UNKNOWN = re.compile(r"\s*\(\?\)")
BRACKETS = re.compile(r"\s*\[[^\[\]]*\]")
BRACES = re.compile(r"\{([^{}]*)\}")
MARKED_BRACES = re.compile(r'(\{[^{}]*[*"`][^{}]*\})\s*\([^()]*[\[*"?`][^()]*\)')
LETTER = re.compile(r"\[([=^'`~\".*,-]?)([A-Za-z]{1,2})(\^?)\]")
SPACE_BEFORE_STOP = re.compile(r"\s+([,;.:])(?=\s|$)")
SPACES = re.compile(r"\s+")
COMBINING = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", ",": "\u0327", "~": "\u0303"}
NAMED = {
    "[deg]": "\u00b0", "[sect]": "\u00a7", "[thorn]": "\u00fe", "[eth]": "\u00f0",
    "[root]": "", "[asl]": "a", "[imac]": "i", "[aum]": "a", "[add]": "a", "[udd]": "u",
    "[ng]": "ng", "[th]": "th", "[bar]": "",
}


def letter(match):
    """[ae], ['e], [a^]: a ligature, an accent, or a sound (whose mark is dropped)."""
    mark, base, after = match.groups()
    if not mark and not after:
        return base if base.lower() in ("ae", "oe") else match.group()
    if len(base) == 1 and mark in COMBINING and not after:
        composed = unicodedata.normalize("NFC", base + COMBINING[mark])
        return composed if len(composed) == 1 else base
    return base


def plain(text):
    """Text without markup, on one line."""
    text = SOURCE.sub(" ", text)
    if "[" in text:
        for name, value in NAMED.items():
            text = text.replace(name, value)
        text = LETTER.sub(letter, text)
    if "{" in text:
        text = BRACES.sub(
            lambda match: re.sub(r'[*"`]', "", match.group(1)), text).replace("{", "")
    text = UNKNOWN.sub("", text.replace("}", ""))
    return SPACE_BEFORE_STOP.sub(r"\1", SPACES.sub(" ", text)).strip()


def heading(text):
    """The line of the headword: names and part of speech."""
    text = PRONUNCIATION.sub("", SYLLABLES.sub("", text))
    count = 1
    while count:
        text, count = BRACKETS.subn("", text)
    text = plain(re.sub(r"\s*\[.*", "", text))  # a bracket that never closes
    return re.sub(r"([,;.])[,;. ]*\1", r"\1", text).rstrip(",; ")


def wraps(text, following):
    """Whether a heading goes on in the following line: a name's syllables, an etymology."""
    if following.lstrip().startswith(("\\", "[")):
        return True
    text = SYLLABLES.sub("", text)
    return (text.count("[") > text.count("]") or text.count("(") > text.count(")")
            or text.count("\\") % 2 == 1 or text.rstrip().endswith((",", ";", " or", " and", "&")))


def entry(lines):
    """The text of an entry, or None if nothing is left of it."""
    head = lines[0]
    at = 1
    while at < len(lines) and lines[at] and wraps(head, lines[at]):
        head += " " + lines[at].strip()
        at += 1
    paragraphs = [heading(head)]
    pending = []
    body = []
    for line in lines[at:] + [""]:
        if line:
            pending.append(line.strip())
        elif pending:
            body.append(" ".join(pending))
            pending = []
    if body:
        body[-1] = STRAYS.sub(r"\1", body[-1])
    texts = [plain(MARKED_BRACES.sub(r"\1", text)) for text in body]
    paragraphs += [text for text in texts if text]
    return "\n".join(paragraphs) + "\n\n" if len(paragraphs) > 1 and paragraphs[0] else None


def entries(stream):
    """The entries' lines, from the first headword after the preface on."""
    lines = []
    for line in stream:
        line = line.rstrip()
        if HEADWORD.match(line):
            if lines:
                yield lines
            lines = [line]
        elif lines:
            lines.append(line)
    if lines:
        yield lines


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.stdin.reconfigure(encoding="cp1252", errors="replace")  # a handful of bytes are not ASCII
    count = 0
    with open(sys.argv[1], "w", encoding="utf-8") as train, \
         open(sys.argv[2], "w", encoding="utf-8") as validation:
        for lines in entries(sys.stdin):
            text = entry(lines)
            if text:
                (validation if count % VALIDATION_EVERY == 50 else train).write(text)
                count += 1


if __name__ == "__main__":
    main()
