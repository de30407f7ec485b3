"""The nouns of Virtuary as frozen pydantic models: what was wished (`spec`), what was seen
(`status`), what it is (`meta`).

Validation only; no behaviour, no input or output. Unknown fields are refused. Sizes are bytes,
times are UTC.
"""
