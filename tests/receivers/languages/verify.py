"""Runs the `verify` of a page of docs/receivers on requests, and prints what it says of each."""

import base64
import json
import runpy
import sys

verify = runpy.run_path(sys.argv[1])["verify"]
asked = json.load(sys.stdin)


def said(case):
    case["body"] = base64.b64decode(case["body"])
    try:
        return verify(*(case[name] for name in asked["arguments"]))
    except Exception as why:
        return f"{type(why).__name__}: {why}"


print(json.dumps({case["name"]: said(case) for case in asked["cases"]}))
