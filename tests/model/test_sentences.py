"""What is wrong with a request is said in our own words, not in those of the library that found
it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from virtuary.model.meta import Model, invalid


class Wish(Model):
    count: int = Field(default=1, ge=1, le=9, multiple_of=1)
    share: float = Field(default=1.0, gt=0, lt=5)
    memory: int = Field(default=1 << 30, ge=64 << 20)
    name: str = Field(default="a", min_length=1, max_length=5, pattern="^[a-z]+$")
    words: list[str] = Field(default_factory=list, max_length=2)
    kind: Literal["a", "b"] = "a"
    flag: bool = True
    when: datetime | None = None
    inner: dict[str, int] = Field(default_factory=dict)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "too small": ({"count": 0}, "count: must be at least 1"),
    "too large": ({"count": 10}, "count: must be at most 9"),
    "not more": ({"share": 0}, "share: must be more than 0.0"),
    "not less": ({"share": 5}, "share: must be less than 5.0"),
    "a size": ({"memory": 5}, "memory: must be at least 64 MiB"),
    "no number": ({"count": "many"}, "count: must be a whole number"),
    "half a number": ({"count": 1.5}, "count: must be a whole number"),
    "no share": ({"share": "x"}, "share: must be a number"),
    "no text": ({"name": 5}, "name: must be a text"),
    "a long text": ({"name": "abcdef"}, "name: may have at most 5 characters"),
    "an empty text": ({"name": ""}, "name: must have at least 1 characters"),
    "an odd text": ({"name": "A"}, "name: is not written as it has to be (^[a-z]+$)"),
    "many words": ({"words": ["a"] * 3}, "words: may hold at most 2 parts"),
    "no list": ({"words": "a"}, "words: must be a list"),
    "none of them": ({"kind": "c"}, "kind: must be one of 'a' or 'b'"),
    "no truth": ({"flag": "perhaps"}, "flag: must be true or false"),
    "no time": ({"when": "soon"}, "when: must be a time (RFC 3339)"),
    "no object": ({"inner": 5}, "inner: must be an object"),
    "unknown": ({"colour": 1}, "colour: is not known here"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_finding_is_a_sentence_of_ours(case: str) -> None:
    body, sentence = CASES[case]
    with pytest.raises(ValidationError) as caught:
        Wish.model_validate(body)
    assert invalid(caught.value).sentence == sentence
