#!/usr/bin/env python3
"""Prints the tests per tier from JUnit files that ctest wrote, and below why what was skipped was skipped.

usage: tools/count_tests.py BUILD/tests.xml...

A run is one entry of ctest (a test program at one rank count); cases are the GoogleTest cases inside, per run. A test that
is skipped prints a line `skipped: REASON`; below the table the runs of each reason are counted.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path

print(f"{'preset':8} {'tier':8} {'runs':>5} {'passed':>7} {'skipped':>8} {'failed':>7} {'cases':>7}")
reasons = Counter()
for path in map(Path, sys.argv[1:]):
    if not path.exists():
        continue
    tiers = defaultdict(lambda: [0, 0, 0, 0, 0])
    for case in ElementTree.parse(path).iter("testcase"):
        row = tiers[case.get("name").split(".")[0]]
        row[0] += 1
        output = case.findtext("system-out") or ""
        skipped = case.find("skipped")
        if case.get("status") == "run":
            row[1] += 1
        elif skipped is not None and skipped.get("message", "").startswith("SKIP"):
            row[2] += 1
            reason = re.search(r"^skipped: (.*\S)", output, re.MULTILINE)
            reasons[reason[1] if reason else f"{case.get('name')} does not say why"] += 1
        else:
            row[3] += 1
        started = re.search(r"\[=+\] Running (\d+) tests?", output)
        row[4] += int(started[1]) if started else 0
    for tier, row in sorted(tiers.items()):
        print(f"{path.parent.name:8} {tier:8} {row[0]:5} {row[1]:7} {row[2]:8} {row[3]:7} {row[4]:7}")
for reason, count in reasons.most_common():
    print(f"skipped {count:3} x {reason}")
