"""What people write for shares and limits."""

from __future__ import annotations

from typing import Any

import click
import pytest

from virtuary.cli.resources import PERCENT, RATE


@pytest.mark.parametrize(
    ("text", "wish"),
    [("50%", 50), ("50", 50), ("1.5cpus", 150), ("1cpu", 100), ("0.25 CPUs", 25), ("none", "none")],
)
def test_processor_time_is_percent_of_one_cpu_or_cpus(text: str, wish: Any) -> None:
    assert PERCENT.convert(text, None, None) == wish


@pytest.mark.parametrize(
    "text", ["1.5", "cpus", "-1cpus", "0.001cpus", "nancpus", "infcpus", "%", "0%", "half"]
)
def test_what_is_no_processor_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"50%|at least"):
        PERCENT.convert(text, None, None)


def test_a_rate_is_a_size_a_second() -> None:
    assert RATE.convert("50MiB/s", None, None) == RATE.convert("50MiB", None, None) == 50 << 20
