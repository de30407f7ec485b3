"""Work that takes minutes, of an image's or a template's worker: carried out beside it, so that a
wish to stop it is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from virtuary.base.errors import Bug, VirtuaryError, of_system

logger = logging.getLogger("virtuary.tasks")


class Unwanted(Exception):
    """Nobody wants it any more; it was ended."""


async def carry_out(
    what: str, work: Coroutine[Any, Any, None], woken: asyncio.Event, unwanted: Callable[[], bool]
) -> None:
    """Do the work, and look each time `woken` is set whether it is unwanted by now. `what` names it
    in a log.

    Raises Unwanted, and of whatever the work itself raises a kind of VirtuaryError. When this is
    cancelled the work is ended first.
    """
    task = asyncio.create_task(work)
    try:
        while not task.done():
            waiting = asyncio.create_task(woken.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            woken.clear()
            if unwanted():
                task.cancel()
        await task
    except asyncio.CancelledError:
        if unwanted():
            raise Unwanted from None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, VirtuaryError):
            await task
        raise
    except VirtuaryError:
        raise
    except OSError as error:
        raise of_system(error) from error
    except Exception as error:
        logger.exception("making %s met a defect", what)
        raise Bug(f"making {what} met a defect: {error!r}") from error
