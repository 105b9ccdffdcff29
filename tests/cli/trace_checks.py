"""What a trace (--trace of `weightcast update`) must be, so that Perfetto and chrome://tracing show what was measured."""

import collections
import math
import re

STAGES = ["prepare", "stage", "verify", "vote", "commit"]
LAYERS = {"trainer": ["trainer"], "engine": ["engine", "scheduler", "tp_worker", "model_runner"]}
PATH = [layer for layers in LAYERS.values() for layer in layers]
PROCESS = re.compile(r"rank (\d+): (trainer|engine, replica \d+, tp \d+) \([^()]+\)")
THREAD = re.compile(r"((?:(?:reads|scrubs): )?(?:trainer|engine|scheduler|tp_worker|model_runner)|stages)(?:, lane \d+)?"
                    r"(?: \(without the first (\d+)\))?")


def begin(event):
    """In nanoseconds; `ts` and `dur` are microseconds with three decimals."""
    return round(event["ts"] * 1e3)


def end(event):
    return begin(event) + round(event["dur"] * 1e3)


def names_of(trace, kind):
    """{pid or (pid, tid): name}"""
    return {e["pid"] if kind == "process_name" else (e["pid"], e["tid"]): e["args"]["name"]
            for e in trace["traceEvents"] if e["ph"] == "M" and e["name"] == kind}


def tracks_of(trace):
    """{pid: {name of the thread: its spans}}"""
    tracks = collections.defaultdict(dict)
    for (pid, tid), name in names_of(trace, "thread_name").items():
        tracks[pid][name] = [e for e in trace["traceEvents"] if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, tid)]
    return dict(tracks)


def plain(name):
    """Of a thread, without what is said of calls that were dropped."""
    return name.split(" (")[0]


def problems_of(trace):
    """Why this is no such trace."""
    problems = []
    events = trace.get("traceEvents")
    if not isinstance(events, list):
        return ["there is no list traceEvents"]
    finite = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)  # noqa: E731
    error = trace.get("otherData", {}).get("clock_error_us")
    if not finite(error) or error < 0:
        problems.append(f"clock_error_us is {error!r}")
    for event in events:
        if event.get("ph") not in ("M", "X") or not isinstance(event.get("pid"), int) or not isinstance(event.get("name"), str):
            problems.append(f"no event: {event}")
        elif event["ph"] == "X" and not (isinstance(event.get("tid"), int) and finite(event.get("ts")) and
                                         finite(event.get("dur")) and event["ts"] >= 0 and event["dur"] >= 0):
            problems.append(f"no span: {event}")
    if problems:
        return problems

    processes, threads = names_of(trace, "process_name"), names_of(trace, "thread_name")
    for pid, name in processes.items():
        found = PROCESS.fullmatch(name)
        if not found or int(found[1]) != pid:
            problems.append(f"process {pid} is called {name}")
    for key in ("process_sort_index", "thread_sort_index"):
        sorted_by = {(e["pid"], e.get("tid")): e["args"]["sort_index"] for e in events if e["name"] == key}
        wanted = {(pid, None): pid for pid in processes} if key == "process_sort_index" else {(p, t): t for p, t in threads}
        if sorted_by != wanted:
            problems.append(f"{key}: {sorted_by}")
    spans = collections.defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            spans[event["pid"], event["tid"]].append(event)
    if spans.keys() != threads.keys() or {pid for pid, _ in threads} - processes.keys():
        problems.append(f"names are for {sorted(threads)} in {sorted(processes)}, spans in {sorted(spans)}")
        return problems
    for thread, name in threads.items():
        if not THREAD.fullmatch(name):
            problems.append(f"thread {thread} is called {name}")
        for one, other in zip(spans[thread], spans[thread][1:]):
            if begin(other) < end(one):
                problems.append(f"{name} of rank {thread[0]}: {other} begins before the end of {one}")
    for pid, tracks in tracks_of(trace).items():
        problems += [f"rank {pid}: {problem}" for problem in problems_of_rank(tracks, "trainer" in processes[pid])]
    return problems


def problems_of_rank(tracks, trainer):
    problems = []
    tracks = {plain(name): spans for name, spans in tracks.items()}
    path = [tracks[layer] for layer in LAYERS["trainer" if trainer else "engine"] if layer in tracks]
    for upper, lower in zip(path, path[1:]):
        if len(upper) != len(lower):
            problems.append(f"{len(upper)} calls in a layer, {len(lower)} in the one below")
        for one, other in zip(upper, lower):
            if one["name"] != other["name"] or begin(other) < begin(one) or end(other) > end(one):
                problems.append(f"{other} is not within {one}")
    stages = tracks.get("stages", [])
    if [e["name"] for e in stages] != STAGES * (len(stages) // 5):
        problems.append(f"its stages are {[e['name'] for e in stages][:12]}...")
        return problems
    calls = [stages[i:i + 5] for i in range(0, len(stages), 5)]
    for call in calls:
        if any(begin(other) != end(one) for one, other in zip(call, call[1:])) or len({e["args"]["update"] for e in call}) != 1:
            problems.append(f"stages do not follow each other: {call}")
    around = [e for e in path[-1] if "failed" not in e["args"]] if path else []
    if len(calls) != len(around):
        problems.append(f"{len(around)} calls came through, {len(calls)} have stages")
    for one, call in zip(around, calls):
        if begin(call[0]) < begin(one) or end(call[-1]) > end(one) or call[0]["args"]["update"] != one["args"]["update"]:
            problems.append(f"{call} is not within {one}")
    return problems


def problems_between(trace, pids, updates):
    """Why these ranks do not show these updates on one timeline: in the last call of each all go through all stages, and
    none commits before all have begun to stage."""
    problems = []
    stages = {pid: [e for name, spans in tracks.items() if plain(name) == "stages" for e in spans]
              for pid, tracks in tracks_of(trace).items()}
    error_ns = 1e3 * trace["otherData"]["clock_error_us"]
    if sorted(names_of(trace, "process_name")) != sorted(pids):
        return [f"the ranks are {sorted(names_of(trace, 'process_name'))}"]
    for update in updates:
        staged, committed = [], []
        for pid in pids:
            last = [e for e in stages.get(pid, []) if e["args"]["update"] == update][-5:]  # of several calls
            if [e["name"] for e in last] != STAGES:
                problems.append(f"rank {pid}, update {update}: {last}")
                continue
            staged.append(begin(last[1]))
            committed.append(begin(last[4]))
        if len(staged) == len(pids) and min(committed) < max(staged) - 2 * error_ns:  # both ends may be wrong
            problems.append(f"update {update}: committed at {min(committed)}, staged at {max(staged)}")
    return problems
