#!/usr/bin/env python3
"""Checks reports (--json of `weightcast update`, `weightcast bench`, tools/baseline_torch.py) against the schema weightcast.report/1,
lib/weightcast/telemetry/report.schema.json.

usage: check_report.py FILE...      exit status 0: all follow it; 1: some do not, each difference on a line
       check_report.py --document   the same of report.md: it names every key that the schema has, and no other
"""

import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TELEMETRY = os.path.join(HERE, "..", "..", "lib", "weightcast", "telemetry")
with open(os.path.join(TELEMETRY, "report.schema.json"), encoding="utf-8") as schema_file:
    SCHEMA = json.load(schema_file)
DEFINITIONS = SCHEMA["$defs"]
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float), "integer": int, "null": type(None)}


def has_type(value, names):
    names = [names] if isinstance(names, str) else names
    return any(isinstance(value, TYPES[name]) for name in names if name == "boolean" or not isinstance(value, bool))


def check(value, schema, where, problems):
    """Appends to `problems` each place where `value` is not what `schema` says: as much of JSON Schema as ours needs, for machines
    without a validator. interop/report_schema.py holds it against one."""
    unknown = schema.keys() - {"$schema", "$defs", "$ref", "title", "type", "const", "enum", "minimum", "pattern", "items", "required",
                               "properties", "additionalProperties", "if", "then", "else"}
    if unknown or schema.get("additionalProperties", False):
        raise NotImplementedError(f"check_report.py does not know {unknown or 'additionalProperties'}")
    if "$ref" in schema:
        check(value, DEFINITIONS[schema["$ref"].removeprefix("#/$defs/")], where, problems)
    if "type" in schema and not has_type(value, schema["type"]):
        problems.append(f"{where}: {value!r} is not of type {schema['type']}")
        return
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        problems.append(f"{where}: {value!r} is not {schema.get('const', schema.get('enum'))}")
    if "minimum" in schema and has_type(value, "number") and value < schema["minimum"]:
        problems.append(f"{where}: {value!r} is less than {schema['minimum']}")
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        problems.append(f"{where}: {value!r} does not match {schema['pattern']}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            check(item, schema["items"], f"{where}[{index}]", problems)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        problems += [f"{where}.{key}: missing" for key in schema.get("required", []) if key not in value]
        if "additionalProperties" in schema:
            problems += [f"{where}.{key}: unknown" for key in value.keys() - properties.keys()]
        for key in properties.keys() & value.keys():
            check(value[key], properties[key], f"{where}.{key}", problems)
    if "if" in schema:
        differs = []
        check(value, schema["if"], where, differs)
        check(value, schema["else" if differs else "then"], where, problems)


def problems_of(report):
    """The differences between a parsed report and the schema, and what in it contradicts itself."""
    problems = []
    check(report, SCHEMA, "report", problems)
    if problems:
        return problems
    if report["ok"] != (report["exit_code"] == 0):
        problems.append("ok and exit_code contradict each other")
    if not report["ok"] and report["error"] is None:
        problems.append("it failed, but error is null")
    for one in report.get("updates", []) + report.get("rows", []):
        by_trainer = one.get("trainer_egress_bytes")
        if by_trainer and sum(by_trainer) != one["egress_bytes"]:
            problems.append(f"egress_bytes is {one['egress_bytes']}, but by trainer rank {by_trainer}")
        payload, shipped = one.get("payload"), one.get("shipped_bytes", 0)
        if payload != "delta" and (shipped or one.get("changed_elements", 0)):
            problems.append(f"{shipped} bytes of a delta, where the payload is {payload}")
    if report["error"] is not None and report["error"]["code"] != report["exit_code"]:
        problems.append("error.code is not exit_code")
    return problems


def documented(text):
    """{object: keys} of report.md: a section for each object, whose heading names it, with a table of its keys."""
    keys = {}
    for section in re.split(r"(?m)^## ", text)[1:]:
        name = re.match(r"`(\w+)`", section)
        if name:
            keys[name[1]] = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"(?m)^\| (`[^|]+) \|", section))))
    return keys


def document_problems(text):
    """Where report.md and the schema do not name the same objects and keys."""
    told = documented(text)
    held = {name: set(d["properties"]) for name, d in DEFINITIONS.items() if "properties" in d}
    return [f"{name}: the schema has {sorted(held.get(name, set()) - told.get(name, set()))}, report.md {sorted(told.get(name, set()) - held.get(name, set()))}"
            for name in sorted(told.keys() | held.keys()) if told.get(name) != held.get(name)]


def check_document():
    with open(os.path.join(TELEMETRY, "report.md"), encoding="utf-8") as file:
        text = file.read()
    problems = document_problems(text)
    for broken in (text.replace("`prepare_s`", "", 1), text.replace("| `id` |", "| `id`, `colour` |"), text.replace("## `phases`", "## Phases")):
        if broken == text or not document_problems(broken):
            problems.append("a report.md that lacks something, or has more, is not noticed")
    return problems


def no_constants(text):
    raise ValueError(f"{text} is not JSON")


def main():
    if sys.argv[1:] == ["--document"]:
        problems = check_document()
        sys.exit("\n".join(problems) if problems else 0)
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    failed = False
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            problems = problems_of(json.load(file, parse_constant=no_constants))
        for problem in problems:
            print(f"{path}: {problem}", file=sys.stderr)
        failed = failed or bool(problems)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
