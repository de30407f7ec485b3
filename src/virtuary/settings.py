"""Reads the configuration file.

System mode reads /etc/virtuary/virtuary.toml, user mode virtuary.toml in the user's configuration
folder. A missing file means the defaults; an unknown or wrong setting is refused when the daemon
starts.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError

from virtuary.base.errors import Invalid
from virtuary.model.meta import invalid
from virtuary.model.settings import Settings


def read(folder: Path) -> Settings:
    """The settings in `folder`/virtuary.toml; raises Invalid naming the file and every wrong
    field.
    """
    place = folder / "virtuary.toml"
    try:
        body = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{place} can't be read: {error}") from error
    try:
        return Settings.model_validate(body)
    except ValidationError as error:
        raise Invalid(f"{place}: {invalid(error).sentence}") from None
