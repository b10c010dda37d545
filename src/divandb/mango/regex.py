"""Regular expressions as RE2 has them: the time of a match is linear in the string, whatever the
pattern, where a backtracking matcher can be made to run for years.

The syntax is https://github.com/google/re2/wiki/Syntax. Where CouchDB (PCRE) differs:

* Refused: look-around, backreferences, atomic groups, possessive quantifiers, recursion, verbs,
  ``\\Z \\h \\R \\K \\N \\X \\e \\c``, ``(?x)``, ``(?#…)``, ``(?|…)``, more than 1,000 repeats, and
  what comes to more than ``REGEX_INSTRUCTIONS_MAX``.
* A character is a code point, in CouchDB a byte: ``^.$`` matches "é", and ``(?i)`` and ``\\p{…}``
  know all letters. ``\\w \\d \\s \\b`` are ASCII in both, and ``\\v`` is U+000B alone.
* ``$`` is the very end of the string; PCRE's matches before a line feed there, too.

No string costs more than a few seconds, and those without the GIL: one so long that its bytes times
the pattern's instructions exceed ``REGEX_STEPS_MAX`` does not match. In CouchDB, too, what exceeds
PCRE's own limit does not match.
"""

from collections.abc import Callable
from typing import Final

import re2

REGEX_CHARS_MAX: Final = 2_000
REGEX_BYTES_MAX: Final = 1 << 20
"""Memory of one compiled pattern, with the states that RE2 remembers."""
REGEX_INSTRUCTIONS_MAX: Final = 10_000
REGEX_STEPS_MAX: Final = 200_000_000

_REASON_CHARS_MAX = 100


def _options() -> re2.Options:
    options = re2.Options()
    options.max_mem = REGEX_BYTES_MAX
    options.log_errors = False
    options.never_capture = True
    return options


_OPTIONS: Final = _options()


def compile_regex(pattern: str) -> Callable[[str], bool]:
    """Whether a string contains a match of the pattern. Raises ValueError with RE2's reason."""
    if len(pattern) > REGEX_CHARS_MAX:
        raise ValueError(f"longer than {REGEX_CHARS_MAX} characters")
    try:
        regex = re2.compile(_encoded(pattern), _OPTIONS)
    except re2.error as error:
        raise ValueError(_reason(error)) from None
    # The module would keep the last 128 patterns, with their memory.
    re2.purge()
    instructions = regex.programsize
    if instructions > REGEX_INSTRUCTIONS_MAX:
        raise ValueError(f"pattern too large: {instructions} instructions")
    subject_bytes_max = REGEX_STEPS_MAX // instructions

    def search(text: str) -> bool:
        subject = _encoded(text)
        return len(subject) <= subject_bytes_max and regex.search(subject) is not None

    return search


def _encoded(text: str) -> bytes:
    # Of a str, re2 would count out in characters where the match stands: 75 times the work.
    return text.encode("utf-8", "surrogatepass")


def _reason(error: Exception) -> str:
    reason: bytes = error.args[0]
    return reason.decode("utf-8", "replace")[:_REASON_CHARS_MAX]
