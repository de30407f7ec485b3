"""The way in: HTTP on a Unix socket.

FastAPI brings dozens of models that describe an OpenAPI document. They are told here, before it
is loaded, to be built when they are used: that is for `/openapi.json` alone, and building them
takes as long as all else that FastAPI does when it is loaded. What our own models have it build
late it does not expect, and then no longer silences what pydantic has to say of it.
"""

from __future__ import annotations

import warnings

from pydantic import BaseModel
from pydantic.warnings import UnsupportedFieldAttributeWarning

_before = BaseModel.model_config
try:
    BaseModel.model_config = {**_before, "defer_build": True}
    import fastapi.openapi.models  # noqa: F401
finally:
    BaseModel.model_config = _before
warnings.filterwarnings("ignore", category=UnsupportedFieldAttributeWarning)
