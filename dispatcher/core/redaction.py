"""Removes secrets from texts, shortens texts, and escapes texts for terminals.

Logs, dead letters, spans, the command line and the dashboard use these functions. Each runs in linear time,
because a text may come from any client that writes documents.
"""

import re
from functools import cache
from typing import Final

LONGEST_TEXT: Final = 20_000
"""Maximum length of an error or of one value in a log line, in characters.

Errors quote documents, and keys may be megabytes long.
"""

_DOTS: Final = "..."

# -- credentials before the host of a URL ----------------------------------------------------------------

_END_OF_WORD: Final = re.compile(r"""[\s"'<>]""")

# A user and the start of a password. If only digits follow the colon, up to the end of the authority, the digits
# are a port.
_USER: Final = re.compile(r"""[^\s/?#@:\[\]"'<>]*:(?!\d{1,5}(?:[/?#,;.)\]\s"'<>]|$))""")

# A word and a space after an "@". If another "@" follows, this word is not the host: the first "@", the word and
# the space belong to the password.
_BARE_WORD: Final = re.compile(r"[\w-]*[ \t]")

# Examples in messages are not secrets.
_EXAMPLES: Final = frozenset({"user:password", "username:password", "USER:PASSWORD", "<user>:<password>"})

# -- secrets with a name ---------------------------------------------------------------------------------

_PASSWORD: Final = r"pass(?:word|wd|phrase|code)|(?<![a-z])(?:pass|pwd|pw)(?![a-z])"  # noqa: S105 - the word
_OTHER: Final = (
    r"secret|token|api[_\-. ]?key|credential|signature|authmechanismproperties|session[_\-.]?id"
    r"|(?:access|account|auth|encryption|master|private|service|session|shared|signing)[_\-.]?(?:access[_\-.]?)?key"
    r"|(?<![a-z0-9])(?:sig|jwt|otp|auth)(?![a-z])"
)
_HEADER: Final = r"authorization|(?<![a-z])cookie"

# The characters of a name after one of the words above, with a closing quote or bracket.
_REST: Final = r"[\w\-]{0,24}(?:\\{0,4}[\"'])?\]?"

# The characters between a name and its value.
_IS: Final = r"[ \t]{0,8}(?:=>|[=:>](?!=))[ \t]{0,8}"

# A value in quotes ends at the first quote that is not followed by a letter, or where the text was cut.
_QUOTED: Final = (
    r"\\{1,4}[\"'][^\"'\n]*"
    r"|[bru]{0,2}\"(?:[^\"\\\n]|\\.|\"(?=\w))*"
    r"|[bru]{0,2}'(?:[^'\\\n]|\\.|'(?=\w))*"
    r"|[(\[{][^)\]}\n]*"
)

# A password without quotes continues after a space, unless the next word is a name with a value.
_WORDS: Final = r"[^\s&]+(?:(?<![,;.:)\]}\"'])[ ](?!\w{1,30}[=:])[^\s&]+)*"
_WORD: Final = r"[^\s&]+"

_NAMED: Final = tuple(
    (
        hints,
        rf"(?i:(?P<name>(?:{name}){_REST}{between})(?P<value>{_QUOTED}|{value}))",
    )
    for hints, name, between, value in (
        ("pass pw", _PASSWORD, _IS, _WORDS),
        ("secret token key cred signature sig= sig' sig\" auth jwt otp session", _OTHER, _IS, _WORD),
        # Also pairs of headers: (b'authorization', b'Bearer ...').
        ("authorization cookie", _HEADER, rf"(?:{_IS}|,[ \t]{{0,8}})", r"digest[^\n]+|aws4[^\n]+|[^\n\"']+"),
        # Arguments of a command, as text and as a list.
        ("--", rf"(?<!-)--[a-z\-]{{0,24}}(?:{_PASSWORD}|{_OTHER})", r"(?:,[ \t]{0,8}|[ \t]{1,8})", _WORD),
        ("? &", r"(?<=[?&])(?:key|code|sig|auth|pass|pw)(?![\w\-])", "=", _WORD),
    )
)
_IS_A_NAME: Final = rf"(?i:{_PASSWORD}|{_OTHER}|{_HEADER})"

# -- secrets with a known form ----------------------------------------------------------------------

_SHAPES: Final = tuple(
    (hints, rf"(?P<name>{before})(?P<value>{shape})")
    for hints, before, shape in (
        ("bearer", r"\bBearer[ \t]+(?!token|auth|scheme)", r"[\w\-.~+/]{6,}=*"),
        ("eyj", r"(?<![\w-])", r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),  # a JSON web token
        ("akia asia", r"\b", r"(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("ghp_ gho_ ghu_ ghs_ ghr_", r"\b", r"gh[pousr]_\w{20,}"),
        ("sk- xox", r"\b", r"(?:sk-[\w-]{20,}|xox[a-z]-[\w-]{10,})"),
    )
)

# Each pattern has hints in lower case: a matching text contains at least one. Most texts contain none.
_PATTERNS: Final = tuple((tuple(hints.split()), pattern) for hints, pattern in (*_NAMED, *_SHAPES))
_HINTS: Final = ("://", "input_value=", *sorted({hint for hints, _ in _PATTERNS for hint in hints}))

# pydantic writes the name of a field in one line, and quotes its value in the next line.
_REFUSED_VALUE: Final = (
    rf"(?im:^(?P<name>[\w.]{{0,60}}(?:{_PASSWORD}|{_OTHER})[\w.]{{0,60}}\n[^\n]*?\binput_value=)"
    r"(?P<value>[^\n]*?)(?=, input_type=|$))"
)

# The long patterns are compiled when a text needs them: all of them together take 0.1 s of CPU time.
_compiled = cache(re.compile)

_KEY_BEGINS: Final = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----")
_KEY_ENDS: Final = "-----END"

# -- control characters of terminals -----------------------------------------------------------------------

# C0, DEL and C1; characters that change the direction of writing or hide text; line separators; lone surrogates.
_CONTROLS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_SHORT_NAMES: Final = {"\t": r"\t", "\r": r"\r"}


def redacted(text: str) -> str:
    """The text, with dots in the place of passwords, tokens and other secrets. A second call changes nothing.

    These are secrets: credentials in URLs; a value after a name such as "password" (in queries, headers, JSON,
    key-value text, Python's representations and command lines); common forms of tokens and private keys.
    """
    lower = text.lower()
    if not any(map(lower.__contains__, _HINTS)):
        return text
    patterns = [(hints, _compiled(one)) for hints, one in _PATTERNS if any(hint in lower for hint in hints)]
    if patterns or "://" in text:
        text = "\n".join(_redacted_line(line, patterns) for line in text.split("\n"))
    if "input_value=" in text:
        text = _compiled(_REFUSED_VALUE).sub(rf"\g<name>{_DOTS}", text)
    return _without_private_keys(text) if _KEY_BEGINS.search(text) else text


def _redacted_line(line: str, patterns: list[tuple[tuple[str, ...], re.Pattern[str]]]) -> str:
    if "://" in line:
        line = _without_credentials(line)
    lower = line.lower()
    for hints, pattern in patterns:
        if any(hint in lower for hint in hints):
            line = pattern.sub(_without_value, line)
    return line


def names_a_secret(name: str) -> bool:
    """Returns whether a value with this name is a secret."""
    return _compiled(_IS_A_NAME).search(name) is not None


def shortened(text: str, limit: int = LONGEST_TEXT) -> str:
    """If a text is too long, replace its middle by dots.

    A cut may leave half of a secret, which redaction would not recognize. So the start keeps only the first
    letters and digits of the word that is cut there. The end keeps nothing of the word that is cut there.
    """
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 2], text[-limit // 2 :]
    last = max(head.rfind(space) for space in " \n\t") + 1
    word = re.match(r"\w*", head[last:])
    first = re.search(r"\s", tail)
    return f"{head[:last]}{word[0] if word else ''} [...] {tail[first.end() :] if first else ''}"


def escaped(text: str, newline: str = r"\n") -> str:
    r"""The text with control characters as Python writes them: `\x1b`. Printable characters stay.

    Args:
        newline: replaces a line break. For a text of several lines, use a break and an indentation, so that no
            line looks like a line of the dispatcher.
    """
    return _CONTROLS.sub(lambda found: newline if found[0] == "\n" else _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if character in _SHORT_NAMES:
        return _SHORT_NAMES[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _without_credentials(line: str) -> str:
    """A line without the text between "://" and "@"."""
    pieces: list[str] = []
    done, found = 0, line.find("://")
    while found >= 0:
        begin = found + 3
        end, looked_at = _end_of_credentials(line, begin)
        if end >= 0 and line[begin:end] not in _EXAMPLES:
            pieces += (line[done:begin], _DOTS)
            done = end
        found = line.find("://", max(begin, looked_at))
    return "".join((*pieces, line[done:]))


def _end_of_credentials(line: str, begin: int) -> tuple[int, int]:
    """The offset of the "@" after credentials, or -1; and the offset at which the search continues.

    The "@" is the last one of the word: a password that was not escaped may hold any character. If a
    password has begun and the word has no "@", the password holds a space or a quote. Then the search goes on in
    the next words.
    """
    word = _END_OF_WORD.search(line, begin)
    end_of_word = word.start() if word else len(line)
    at = line.rfind("@", begin, end_of_word)
    if _USER.match(line, begin) is None:
        return at, at if at >= 0 else end_of_word
    following = line.find("://", end_of_word)
    end = following if following >= 0 else len(line)
    if at < 0:
        at = _last_of_word(line, line.find("@", end_of_word, end), end)
    while at >= 0 and _BARE_WORD.match(line, at + 1):
        further = line.find("@", at + 1, end)
        if further < 0:
            break
        at = _last_of_word(line, further, end)
    return at, at if at >= 0 else end_of_word


def _last_of_word(line: str, at: int, end: int) -> int:
    if at < 0:
        return at
    word = _END_OF_WORD.search(line, at, end)
    return line.rfind("@", at, word.start() if word else end)


def _without_value(found: re.Match[str]) -> str:
    """The name of a secret with dots for its value. The quotes stay."""
    value = found["value"]
    opening = re.match(r"""\\{1,4}["']|[bru]{0,2}["']|[(\[{]""", value, re.IGNORECASE)
    if opening is None:
        return f"{found['name']}{_DOTS}"
    return f"{found['name']}{opening[0]}{_DOTS}"


def _without_private_keys(text: str) -> str:
    pieces: list[str] = []
    done = 0
    while begins := _KEY_BEGINS.search(text, done):
        pieces += (text[done : begins.end()], _DOTS)
        ends = text.find(_KEY_ENDS, begins.end())
        done = ends if ends >= 0 else len(text)
    return "".join((*pieces, text[done:]))
