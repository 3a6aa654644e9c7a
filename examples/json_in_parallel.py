"""Six records at once, each of them JSON that fits its schema: one prompt, and one batch for a token of each."""

import json

import lloyal

PROMPT = "# A record of the library's catalogue, as JSON.\nrecord = "
SCHEMAS = {
    "book": {
        "type": "object",
        "properties": {
            "title": {"type": "string", "minLength": 4, "maxLength": 12},
            "pages": {"type": "integer", "maximum": 999},
        },
        "required": ["title", "pages"],
    },
    "loan": {
        "type": "object",
        "properties": {"days": {"type": "integer", "maximum": 60}, "late": {"type": "boolean"}},
        "required": ["days", "late"],
    },
    "tags": {"type": "array", "items": {"enum": ["new", "rare", "lent"]}, "minItems": 1, "maxItems": 3},
}

ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_ctx=1024, n_seq_max=7, n_threads=1)
with lloyal.BranchStore(ctx) as store:
    prompt = store.create(PROMPT)
    records = []
    for number, (kind, schema) in enumerate(SCHEMAS.items()):
        for fork in prompt.fork(2, seed=10 * number, name=kind + " "):
            fork.set_grammar(lloyal.grammar.from_json_schema(schema))
            records.append(fork)
    while store.live:
        store.step()
    for record in records:
        print(f"{record.name:10} {json.loads(record.text)}")
