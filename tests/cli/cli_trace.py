#!/usr/bin/env python3
"""`weightcast update --trace`: every rank and layer is in it, on one clock, and what it holds is what was measured.

usage: cli_trace.py PROGRAM MPIEXEC [unittest arguments]
"""

import copy
import json
import os
import re
import subprocess
import sys
import time
import unittest

import workplace
from trace_checks import LAYERS, STAGES, begin, end, names_of, plain, problems_between, problems_of, tracks_of
from workplace import run

PROGRAM, MPIEXEC = "", ""
MISMATCH, MOST_SPANS = 76, 200_000


class Traces(workplace.Workplace):
    def update(self, ranks, *arguments, initial="synth:1", target="synth:2", status=0, before=None):
        """The trace and the report of an update of `tiny`; `before(rank)` goes before the program's name."""
        program = [PROGRAM, "update", "--model=tiny", "--initial", initial, "--target", target, "--device=host", "--trace",
                   self.path("trace.json"), "--json", self.path("report.json"), *arguments]
        parts = [["-n", 1, *(before(rank) if before else ()), *program] for rank in range(ranks)] if before else [["-n", ranks, *program]]
        begun = time.monotonic()
        done = run([MPIEXEC, *[word for part in parts for word in [*part, ":"]][:-1]], timeout=120)
        took_s = time.monotonic() - begun
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        with open(self.path("report.json"), encoding="utf-8") as file:
            report = json.load(file)
        trace = self.read_trace(self.path("trace.json"))
        spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
        self.assertLessEqual(len(spans), MOST_SPANS)
        if spans:
            self.assertLess(max(map(end, spans)), 1e9 * took_s)
        return trace, report

    def read_trace(self, path):
        with open(path, encoding="utf-8") as file:
            trace = json.load(file, parse_constant=lambda text: self.fail(f"{text} is not JSON"))
        self.assertEqual(problems_of(trace), [])
        return trace

    def test_all_ranks_and_layers_with_readers(self):
        trace, report = self.update(5, "--tp=2", "--dp=2", "--repeat=3", "--readers=2")
        self.assertEqual(problems_between(trace, range(5), (1, 2, 3)), [])
        names = names_of(trace, "process_name")
        for rank, what in enumerate(("trainer", "engine, replica 0, tp 0", "engine, replica 0, tp 1", "engine, replica 1, tp 0",
                                     "engine, replica 1, tp 1")):
            self.assertTrue(names[rank].startswith(f"rank {rank}: {what} ("), names)
        self.assertEqual(trace["otherData"]["clock_error_us"], 0)  # one host
        tracks = tracks_of(trace)
        self.assertEqual(list(tracks[0]), ["trainer", "stages"])
        for rank in (1, 3):  # first ranks: requests pass all layers
            self.assertEqual(list(tracks[rank])[:5], [*LAYERS["engine"], "stages"])
            reads = [name for name in tracks[rank] if name.startswith("reads: ")]
            self.assertEqual(list(dict.fromkeys(name.split(", lane")[0] for name in reads)), [f"reads: {layer}" for layer in LAYERS["engine"]])
            self.assertEqual({name.partition(", lane ")[2] for name in reads} - {"", "2"}, set())  # two threads read
            self.assertNotIn("reads: model_runner, lane 2", reads)  # where they take turns
            self.assertNotEqual(tracks[rank]["reads: engine"], [])
        for rank in (2, 4):  # the others are asked by them
            self.assertEqual(list(tracks[rank]), ["tp_worker", "model_runner", "stages", "reads: tp_worker", "reads: model_runner"])
        for rank, layers in tracks.items():
            for name, spans in layers.items():
                if not name.startswith("reads") and name != "stages":
                    self.assertEqual([e["name"] for e in spans], ["update 1", "update 2", "update 3"], (rank, name))
        # The trainer's stages are what the report has of them, to the nanosecond.
        stages = [round(1e3 * e["dur"]) for e in tracks[0]["stages"]]
        self.assertEqual(stages, [round(1e9 * u[f"{stage}_s"]) for u in report["updates"] for stage in STAGES])
        reads = sum(len(spans) for rank in (1, 3) for name, spans in tracks[rank].items() if name.startswith("reads: engine"))
        self.assertGreaterEqual(report["readers"]["reads"], reads)

    def test_several_trainer_ranks(self):
        trace, _ = self.update(4, "--trainers=2", "--tp=2", "--repeat=2")
        self.assertEqual(problems_between(trace, range(4), (1, 2)), [])
        for rank, tracks in tracks_of(trace).items():
            self.assertEqual("trainer" in tracks, rank < 2)
            self.assertEqual("engine" in tracks, rank == 2)

    def test_parameter_by_parameter_it_is_bounded(self):
        repeat, tensors = 100, 30
        trace, report = self.update(5, "--tp=2", "--dp=2", f"--repeat={repeat}", "--granularity=parameter")
        self.assertEqual(report["model"]["parameters"], tensors)
        self.assertEqual(problems_between(trace, range(5), range(repeat - 10, repeat + 1)), [])
        for rank, tracks in tracks_of(trace).items():
            for name, spans in tracks.items():
                calls = len(spans) // (5 if name.startswith("stages") else 1)
                dropped = re.fullmatch(r"\S+ \(without the first (\d+)\)", name)
                self.assertTrue(dropped, (rank, name))
                self.assertEqual(calls + int(dropped[1]), repeat * tensors, (rank, name))
                self.assertEqual(spans[-1]["args"]["update"], repeat)
        last = [e["name"] for name, spans in tracks_of(trace)[1].items() if plain(name) == "engine" for e in spans[-tensors:]]
        self.assertEqual(len(set(last)), tensors)
        self.assertIn("model.norm.weight", last)

    def test_scrubs(self):
        trace, _ = self.update(3, "--tp=2", "--repeat=2", "--scrub=1")
        tracks = tracks_of(trace)
        self.assertEqual([len(tracks[1][f"scrubs: {layer}"]) for layer in LAYERS["engine"]], [2] * 4)
        self.assertEqual([name for name in tracks[2] if name.startswith("scrubs")], ["scrubs: tp_worker", "scrubs: model_runner"])

    def test_clocks_of_several_hosts_are_compared(self):
        """A time namespace has another clock: rank 2 believes that its machine started 5000 s earlier."""
        other_clock = ["unshare", "--time", "--monotonic", "5000"]
        if subprocess.run([*other_clock, "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("no right to make a time namespace")
        trace, _ = self.update(3, "--tp=2", "--repeat=3", before=lambda rank: other_clock if rank == 2 else [])
        self.assertEqual(problems_between(trace, range(3), (1, 2, 3)), [])
        self.assertGreater(trace["otherData"]["clock_error_us"], 0)
        labelled = [e["pid"] for e in trace["traceEvents"] if e["name"] == "process_labels"]
        self.assertEqual(labelled, [2])

    def test_what_fails_on_all_ranks_is_shown_of_all_ranks(self):
        trace, report = self.update(3, "--verify=sample", target="synth:1", status=MISMATCH)
        self.assertEqual(report["updates"], [])
        self.assertEqual(sorted(names_of(trace, "process_name")), [0, 1, 2])
        tracks = tracks_of(trace)
        self.assertIn("reads: engine", tracks[1])  # the sample
        self.assertEqual([name for layers in tracks.values() for name in layers if not name.startswith("reads: ")], [])

    def test_before_the_updates_there_is_nothing_to_show(self):
        trace, _ = self.update(3, initial="/nowhere", status=66)
        self.assertEqual(trace["traceEvents"], [])


class Checker(unittest.TestCase):
    """A trace that is broken is refused."""

    def good(self):
        events = []
        for pid, name, layers in ((0, "rank 0: trainer (node)", LAYERS["trainer"]), (1, "rank 1: engine, replica 0, tp 0 (node)", LAYERS["engine"])):
            events += [{"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}},
                       {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}]
            for tid, layer in enumerate([*layers, "stages"], 1):
                events += [{"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": layer}},
                           {"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}]
                for update in (1, 2):
                    at = 1000.0 * update
                    spans = [(f"update {update}", at + tid, 100 - 2 * tid)]
                    if layer == "stages":
                        spans = [(stage, at + 10 + 5 * i, 5) for i, stage in enumerate(STAGES)]
                    events += [{"ph": "X", "pid": pid, "tid": tid, "ts": ts, "dur": dur, "name": what, "args": {"update": update}}
                               for what, ts, dur in spans]
        return {"otherData": {"clock_error_us": 0.0}, "traceEvents": events}

    def problems(self, change):
        trace = copy.deepcopy(self.good())
        change(trace, lambda pid, name: next(e for e in trace["traceEvents"] if e["ph"] == "X" and (e["pid"], e["name"]) == (pid, name)))
        return problems_of(trace) or problems_between(trace, (0, 1), (1, 2))

    def test_a_good_one_is_taken(self):
        self.assertEqual(self.problems(lambda trace, span: None), [])

    def test_broken_ones_are_not(self):
        def without(predicate):
            def change(trace, _):
                trace["traceEvents"] = [e for e in trace["traceEvents"] if not predicate(e)]
            return change

        def moved(pid, name, **values):
            return lambda trace, span: span(pid, name).update(values)

        def renamed(kind, name):
            def change(trace, _):
                next(e for e in trace["traceEvents"] if e["name"] == kind)["args"]["name"] = name
            return change

        for what, change in {
                "no events": lambda trace, _: trace.pop("traceEvents"),
                "no error": lambda trace, _: trace["otherData"].clear(),
                "infinite": moved(1, "vote", ts=float("inf")),
                "not a number": moved(1, "vote", dur=float("nan")),
                "negative": moved(1, "vote", dur=-1),
                "before the job": moved(0, "update 1", ts=-5),
                "a rank is missing": without(lambda e: e["pid"] == 1),
                "no process name": without(lambda e: e["name"] == "process_name" and e["pid"] == 1),
                "no thread name": without(lambda e: e["name"] == "thread_name" and e["tid"] == 2),
                "no order": without(lambda e: e["name"] == "thread_sort_index"),
                "another's name": renamed("process_name", "rank 1: trainer (node)"),
                "no role": renamed("process_name", "rank 0"),
                "an unknown layer": renamed("thread_name", "cellar"),
                "a stage is missing": without(lambda e: e["name"] == "verify" and e["args"]["update"] == 2),
                "all stages of an update are missing": without(lambda e: e["ph"] == "X" and e["name"] in STAGES and e["args"]["update"] == 2),
                "a gap between stages": moved(1, "verify", dur=4),
                "stages overlap": moved(1, "verify", dur=6),
                "backwards": moved(1, "update 1", ts=5000),
                "a layer leaves the one above": without(lambda e: e["ph"] == "X" and e["pid"] == 1 and e["tid"] == 3),
                "stages after the call": moved(0, "update 1", dur=20),
                "another update's": moved(0, "update 2", args={"update": 7}),
                "a layer before the one above": lambda trace, _: next(
                    e for e in trace["traceEvents"] if e["ph"] == "X" and (e["pid"], e["tid"]) == (1, 3)).update(ts=990),
                "clocks apart": lambda trace, _: [e.update(ts=e["ts"] + 50) for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == 1]}.items():
            with self.subTest(what):
                self.assertNotEqual(self.problems(change), [])

    def test_clocks_may_be_apart_by_their_error(self):
        def change(trace, _):
            trace["otherData"]["clock_error_us"] = 50.0
            for event in trace["traceEvents"]:
                if event["ph"] == "X" and event["pid"] == 1:
                    event["ts"] += 50
        self.assertEqual(self.problems(change), [])


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    PROGRAM, MPIEXEC = os.path.abspath(sys.argv.pop(1)), sys.argv.pop(1)
    unittest.main()
