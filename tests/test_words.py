"""One word for one concept, and the field's: terms that were replaced stay away."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Pattern -> what to say instead.
REPLACED = {
    r"\bstretch(es)?\b": "truncation",
    r"\bnot a number\b": "NaN",
    r"settings that cannot be": "invalid settings",
    r"\b(goes|go|gone|going) on (with|where|by|again)\b": "resume, continue",
    r"the same command goes on": "rerun the command to resume",
    r"(have|has) no part in": "is excluded from",
    r"is of another architecture": "does not match this architecture",
    r"went astray": "diverged",
    r"so that it comes soon": "for early feedback",
    r"belongs into": "belongs in",
    r"falls short": "does not match",
    r"\bis wanted\b|\bare wanted\b": "is required",
    r"what stands on": "the head on",
    r"must be made, got the class": "must be an instance, got the class",
    r"do(es)? not pass this inner loop": "cannot differentiate through this inner loop",
    r"all but what moves": "everything except which variables adapt",
    r"do not know the scale": "are invariant to the scale",
    r"\btells? \w+ (classes )?apart\b": "distinguishes",
    r"No cluster tells": "No cluster environment detected",
    r"as each platform likes": "in the fastest way for each platform",
    r"is as right as they say": "with documented bias",
    r"least norm": "lowest norm",
    r"1/\d+ of the time": "N times faster",
    r"is missing: of": "is required",
}
FILES = [
    path
    for pattern in ("jaxmeta/**/*.py", "docs/**/*.md", "notebooks/*.ipynb", "*.md")
    for path in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize("pattern", REPLACED)
def test_replaced_terms_stay_away(pattern):
    """Joins lines, because terms break across them."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path in FILES
        for match in re.finditer(
            pattern, re.sub(r'"?\s*\n\s*(\S?")?', " ", path.read_text()), re.I
        )
    ]
    assert not found, f"say {REPLACED[pattern]!r}: {found}"
