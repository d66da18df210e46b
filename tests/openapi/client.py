"""schemathesis, with what it has to be told of this API. Its arguments are those of the command line."""

import json

import schemathesis
from schemathesis.cli import schemathesis as run

LINES = "application/x-ndjson"
IMPORT = "/v1/subscriptions/import"
TAP = "/v1/tap"


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """OpenAPI 3.1 has no word for lines: `x-line` says what one is, and some of them are made of it."""
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            if LINES in content:
                line = content[LINES].pop("x-line")
                content[LINES]["schema"] = {"type": "array", "items": line, "maxItems": 3}
                content[LINES]["example"] = raw_schema["components"]["schemas"]["ExportedLine"]["examples"]


@schemathesis.serializer(LINES)
def lines(context, value):
    if isinstance(value, str):
        return value.encode(errors="replace")
    if isinstance(value, bytes):
        return value
    entries = value if isinstance(value, list) else [value]
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode(errors="replace")


asked = {IMPORT: 0, TAP: 0}


@schemathesis.hook
def before_call(context, case, kwargs):
    """A stream that nobody ends is ended soon."""
    if case.path in asked:
        asked[case.path] += 1
    if case.path == TAP:
        query = case.query if isinstance(case.query, dict) else {}
        case.query = {"for": "10ms", **query}


@schemathesis.hook
def after_call(context, case, response):
    if case.path == IMPORT and response.status_code == 200 and b'"made"' in response.content:
        asked["made"] = asked.get("made", 0) + 1


if __name__ == "__main__":
    try:
        run()
    finally:
        print("asked", json.dumps(asked))
