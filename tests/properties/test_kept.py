"""What a file was validated to is written and read again without a loss.

It must not know how it is written. The one idea: whatever validates comes back the same, field by field.
"""

from __future__ import annotations

from dataclasses import fields, replace

from hypothesis import given, settings, strategies as st

from nfportd.model import Mapping
from nfportd.sources import kept
from tests.properties.strategies import files

TEXT = st.none() | st.text(min_size=1).filter(str.isprintable)


@st.composite
def dropins(draw: st.DrawFn) -> dict[Mapping, int]:
    """What one drop-in may wish, with what the strategies for the kernel leave out."""
    return {
        replace(
            each,
            name=draw(TEXT),
            comment=draw(TEXT),
            shadow_listener=draw(st.booleans()),
            reserve=draw(st.booleans()),
        ): line
        for each, line in draw(files(12)).items()
    }


def typed(found: dict[Mapping, int]) -> list[object]:
    """Every value with its type, down to the last: for `"tcp"` and `Protocol.TCP`, 1 and True are equal."""
    return [
        (type(each), line, [repr(getattr(each, field.name)) for field in fields(each)]) for each, line in found.items()
    ]


@settings(max_examples=300, deadline=None)
@given(dropins())
def test_what_is_kept_comes_back_the_same(wished: dict[Mapping, int]) -> None:
    found = kept.decode(kept.encode(wished))

    assert found == wished
    assert typed(found) == typed(wished)
    assert list(map(hash, found)) == list(map(hash, wished))
    assert [dict(each.endpoints()) for each in found] == [dict(each.endpoints()) for each in wished]
    assert list(map(replace, found)) == list(wished)
