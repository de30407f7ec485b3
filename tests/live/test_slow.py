"""A start that hangs says why, in its progress, in what `show` tells, and in its closing
sentence.
"""

from __future__ import annotations

import pytest
from instances import Instance

pytestmark = pytest.mark.live


def test_a_guest_with_too_little_memory_is_not_waited_for_in_silence(instance: Instance) -> None:
    # from which it is known what is usual
    instance.ok("launch", "tiny", "usual", "--cold", limit=120)
    done = instance.run(
        "launch", "tiny", "small", "--cold", "--memory", "64MiB", "--timeout", "25s", limit=60
    )
    assert done.status == 6
    assert (
        "it takes long: nothing was printed on its console yet: are 64 MiB of memory enough?"
        in done.err
    )
    assert "small is not ready after 25.0 s; last stage: firmware; nothing was printed" in done.err
    assert "64 MiB" in instance.vm("small")["status"]["reason"]
    instance.ok("delete", "--now", "--force", "--yes", "usual", "small")
