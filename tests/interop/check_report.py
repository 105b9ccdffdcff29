#!/usr/bin/env python3
"""Checks reports (--json of `weightcast update`, `weightcast bench`, tools/baseline_torch.py) against the schema weightcast.report/1.

usage: check_report.py FILE...      exit status 0: all follow it; 1: some do not, each difference on a line
"""

import json
import sys

NUMBER = "a number or null"  # null: not known
COUNT = "a count"
TEXT = "a text"
TEXT_OR_NULL = "a text or null"
RANK = "a rank or null"


def optional(schema):
    return ("optional", schema)


def absent(schema):
    """For keys that need not be there."""
    return ("absent", schema)


CALLS = {"calls": COUNT, "first_s": NUMBER, "median_s": NUMBER, "p99_s": NUMBER, "own_first_s": NUMBER,
         "own_median_s": NUMBER, "own_p99_s": NUMBER}
LAYER = {"layer": TEXT, "calls": COUNT, "median_s": NUMBER, "cold": CALLS, "warm": CALLS}
READERS = {"count": COUNT, "reads": COUNT, "mixed": COUNT, "stale": COUNT, "reads_per_s": NUMBER,
           "idle_p50_s": NUMBER, "idle_p99_s": NUMBER, "updating_p50_s": NUMBER, "updating_p99_s": NUMBER,
           "pause_p99_s": NUMBER, "pause_max_s": NUMBER,
           "layers": [{"layer": TEXT, "calls": COUNT, "median_s": NUMBER, "p99_s": NUMBER}]}
PAYLOAD = {"payload": absent(TEXT_OR_NULL), "shipped_bytes": absent(COUNT), "changed_elements": absent(COUNT),
           "diff_s": absent(NUMBER), "apply_s": absent(NUMBER)}
UPDATE = {"id": COUNT, "version": COUNT, "result": TEXT, "total_s": NUMBER, "prepare_s": NUMBER, "stage_s": NUMBER,
          "verify_s": NUMBER, "vote_s": NUMBER, "commit_s": NUMBER, "pause_s": NUMBER, "egress_bytes": COUNT,
          "staging_bytes": COUNT, "trainer_egress_bytes": absent([COUNT]), **PAYLOAD}
ROW = {"model": TEXT, "model_bytes": COUNT, "device": TEXT, "transport": TEXT, "method": TEXT, "granularity": TEXT,
       "tp": COUNT, "dp": COUNT, "verify": TEXT, "cold_s": NUMBER, "median_s": NUMBER, "min_s": NUMBER,
       "max_s": NUMBER, "p99_s": NUMBER, "model_GBps": NUMBER, "egress_bytes": COUNT, "staging_bytes": COUNT,
       "wrong": COUNT, "ceiling_GBps": NUMBER, "ratio_to_ceiling": NUMBER, "group_warmup": absent(bool),
       "trainers": absent(COUNT), "source_layout": absent(TEXT), "trainer_egress_bytes": absent([COUNT]),
       "layers": absent([LAYER]), "stages": absent([LAYER]), "readers": absent(READERS), "delta": absent(TEXT),
       "changed": absent(NUMBER), "ship_s": absent(NUMBER), "commit": absent(TEXT), **PAYLOAD}
ALWAYS = {
    "schema": TEXT, "command": TEXT, "ok": bool, "exit_code": COUNT,
    "versions": {"weightcast": TEXT, "mpi": TEXT, "nccl": TEXT, "cuda": TEXT, "hdf5": TEXT},
    "ranks": [{"rank": COUNT, "role": TEXT, "host": TEXT, "gpu": TEXT_OR_NULL}],
    "error": optional({"code": COUNT, "stage": TEXT_OR_NULL, "rank": RANK, "message": TEXT}),
}
COMMANDS = {
    "update": {
        "world": {"trainer": COUNT, "trainers": absent(COUNT), "tp": COUNT, "dp": COUNT}, "source_layout": absent(TEXT),
        "device": TEXT, "transport": TEXT, "method": TEXT, "granularity": TEXT, "commit": TEXT,
        "model": {"family": TEXT, "parameters": COUNT, "bytes": COUNT},
        "group": {"init_s": NUMBER, "warmup_s": NUMBER, "delta_bytes": absent(COUNT)},
        "phases": {"load_s": NUMBER, "group_s": NUMBER, "updates_s": NUMBER, "check_s": NUMBER, "snapshot_s": NUMBER,
                   "total_s": NUMBER},
        "notes": absent([TEXT]),
        "updates": [UPDATE],
        "summary": {"cold_s": NUMBER, "median_s": NUMBER, "min_s": NUMBER, "max_s": NUMBER, "p99_s": NUMBER,
                    "model_GBps": NUMBER, "ceiling_GBps": NUMBER, "ratio_to_ceiling": NUMBER, "scrubs": absent(COUNT),
                    "scrub_s": absent(NUMBER)},
        "verify": {"mode": TEXT, "parameters": COUNT, "mismatched": COUNT, "digest": TEXT_OR_NULL},
        "layers": [LAYER], "stages": [LAYER],
    },
    "bench": {"rows": [ROW]},
}


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check(value, schema, where, problems):
    """Appends to `problems` each place where `value` is not what `schema` says."""
    if isinstance(schema, tuple):
        if value is not None or schema[0] == "absent":
            check(value, schema[1], where, problems)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            problems.append(f"{where}: not a list")
            return
        for index, item in enumerate(value):
            check(item, schema[0], f"{where}[{index}]", problems)
    elif isinstance(schema, dict):
        if not isinstance(value, dict):
            problems.append(f"{where}: not an object")
            return
        for key in schema.keys() - value.keys():
            if isinstance(schema[key], tuple) and schema[key][0] == "absent":
                continue
            problems.append(f"{where}.{key}: missing")
        for key in value.keys() - schema.keys():
            problems.append(f"{where}.{key}: unknown")
        for key in schema.keys() & value.keys():
            check(value[key], schema[key], f"{where}.{key}", problems)
    else:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = {NUMBER: value is None or number, COUNT: is_count(value), TEXT: isinstance(value, str),
                TEXT_OR_NULL: value is None or isinstance(value, str), RANK: value is None or is_count(value),
                bool: isinstance(value, bool)}[schema]
        if not good:
            problems.append(f"{where}: {value!r} is not {schema}")


def problems_of(report):
    """The differences between a parsed report and the schema."""
    command = report.get("command") if isinstance(report, dict) else None
    if command not in COMMANDS:
        return [f"command: {command!r} is neither update nor bench"]
    schema = {**ALWAYS, **COMMANDS[command]}
    if command == "update" and "readers" in report:
        schema["readers"] = READERS
    if isinstance(report.get("versions"), dict) and "torch" in report["versions"]:  # a peer's: tools/baseline_torch.py
        schema["versions"] = {**ALWAYS["versions"], "torch": TEXT}
    problems = []
    check(report, schema, "report", problems)
    if problems:
        return problems
    if report["schema"] != "weightcast.report/1":
        problems.append(f"schema: {report['schema']!r}")
    if report["ok"] != (report["exit_code"] == 0):
        problems.append("ok and exit_code contradict each other")
    if not report["ok"] and report["error"] is None:
        problems.append("it failed, but error is null")
    for one in report.get("updates", []) + report.get("rows", []):
        by_trainer = one.get("trainer_egress_bytes")
        if by_trainer and sum(by_trainer) != one["egress_bytes"]:
            problems.append(f"egress_bytes is {one['egress_bytes']}, but by trainer rank {by_trainer}")
        payload, shipped = one.get("payload"), one.get("shipped_bytes", 0)
        if payload not in (None, "dense", "delta"):
            problems.append(f"payload is {payload}")
        if payload != "delta" and (shipped or one.get("changed_elements", 0)):
            problems.append(f"{shipped} bytes of a delta, where the payload is {payload}")
    if report["error"] is not None and report["error"]["code"] != report["exit_code"]:
        problems.append("error.code is not exit_code")
    return problems


def no_constants(text):
    raise ValueError(f"{text} is not JSON")


def main():
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
