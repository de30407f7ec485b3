"""Programs of iproute2, run in the host's network or in a namespace: questions are answered as
text, changes are one batch.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from virtuary.base.errors import Failed
from virtuary.base.proc import Result, run


async def ask(program: str, words: Sequence[str], namespace: str | None) -> str:
    place = ("-n", namespace) if namespace else ()
    return (await run(program, *place, *words)).stdout.decode(errors="replace")


async def change(lines: Iterable[str], namespace: str | None) -> None:
    """All lines, each run of one program's in one process. Raises Failed with the first that was
    refused, after all were tried.
    """
    fault: Failed | None = None
    for _, group in itertools.groupby(lines, lambda line: line.partition(" ")[0]):
        together = list(group)
        result = await batch(together, namespace)
        if result.status and not fault:
            fault = refusal(together, result)
    if fault:
        raise fault


async def batch(lines: Sequence[str], namespace: str | None, *options: str) -> Result:
    program = lines[0].partition(" ")[0]
    text = "".join(line.partition(" ")[2] + "\n" for line in lines)
    place = ("-n", namespace) if namespace else ()
    return await run(
        program, *place, *options, "-force", "-batch", "-", stdin=text.encode(), check=False
    )


def refusal(lines: Sequence[str], result: Result) -> Failed:
    said = result.stderr.decode(errors="replace")
    number = re.search(r"^Command failed -:(\d+)", said, re.MULTILINE)
    reasons = [
        line
        for line in said[: number.start() if number else None].splitlines()
        if line.strip() and "Warning" not in line
    ]
    line = lines[int(number.group(1)) - 1] if number else lines[0]
    return Failed(
        f"{line!r} was refused: {' '.join(reasons)[:300] or f'exit status {result.status}'}"
    )
