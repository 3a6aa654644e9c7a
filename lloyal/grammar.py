"""Grammars that constrain what a model can say. They are text in GBNF; `Sampler.grammar` applies them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lloyal.errors import InvalidGrammar
from lloyal.llama.common import json_schema_to_grammar

__all__ = ["from_json_schema"]


def from_json_schema(schema: Mapping[str, Any] | bool | str) -> str:
    """A grammar that admits the JSON values a schema admits.

    Parameters
    ----------
    schema : mapping, bool or str
        The schema, or its JSON text.

    Returns
    -------
    str
        GBNF with the rule ``root``.

    Raises
    ------
    InvalidGrammar
        It is no JSON, refers to something that is not there, or uses what a grammar cannot express.
    """
    if isinstance(schema, str):
        return json_schema_to_grammar(schema)
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidGrammar(f"the schema is not JSON: {error}") from None
    return json_schema_to_grammar(text)
