#!/usr/bin/env python3
"""Draws and tabulates reports of `weightcast bench --json` and tools/baseline_torch.py beside the ceiling.

usage: tools/plot_bench.py [--markdown] [--readme FILE] [--output PREFIX] REPORT.json...

  --markdown       print a Markdown table (what happens without any option, too)
  --readme FILE    put the table between the lines <!-- bench:begin --> and <!-- bench:end --> of FILE
  --output PREFIX  draw PREFIX.png and PREFIX.svg: a panel per model and placement, a bar per way to update it (median;
                   whiskers from the fastest to the slowest update; one that leaves the panel ends in an arrow and its
                   ms), a line where one plain copy of the same size is. Needs matplotlib. With --readme the table is
                   followed by the picture.

Where the engines are is read from the GPUs of the ranks. Rows of one placement are gathered from all reports; the same
row in two reports: the later file counts. The ceiling of a panel is the median of those that its rows were measured
with, so only reports of one host and one job belong together.
Exit codes: 0; 64 usage; 65 not a report; 66 no such file; 69 no matplotlib (the table is made all the same); 73 cannot
write; 78 FILE lacks the two lines.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from typing import NamedTuple

USAGE, BAD_DATA, NO_INPUT, UNAVAILABLE, CANT_CREATE, CONFIG = 64, 65, 66, 69, 73, 78
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
TRANSPORTS = ("direct", "nccl", "mpi", "torch")
METHODS = ("sharded", "broadcast", "per-parameter", "packed", "seed")
# Okabe and Ito's, which do not depend on colour vision: verified, and paler for the movement alone.
COLOURS = {"direct": ("#0072b2", "#7fb8d8"), "nccl": ("#009e73", "#7fceb9"), "mpi": ("#cc79a7", "#e5bcd3"),
           "torch": ("#e69f00", "#f2cf7f")}


class Place(NamedTuple):
    """What the rows of one panel share."""
    model: str
    model_bytes: int
    tp: int
    dp: int
    where: str

    def title(self):
        engines = f"tp {self.tp}" + (f" x dp {self.dp}" if self.dp > 1 else "")
        return f"{self.model}, {self.model_bytes / 1e9:.3g} GB, {engines} {self.where}"


def stop(code, message):
    print(f"plot_bench: {message}", file=sys.stderr)
    sys.exit(code)


def say(message):
    print(f"plot_bench: {message}", file=sys.stderr)


# --- reading ----------------------------------------------------------------------------------------------------------

def where_engines_are(ranks):
    trainer = [rank for rank in ranks if rank["role"] == "trainer"]
    engines = [rank for rank in ranks if rank["role"] == "engine"]
    if len(trainer) > 1:
        return f"from {len(trainer)} trainer ranks {where_they_meet(trainer, engines)}"
    if not trainer or not engines or any(rank["gpu"] is None for rank in ranks):
        return "in host memory"
    if any(engine["host"] != trainer[0]["host"] for engine in engines):
        return "across hosts"
    beside = [engine["gpu"] == trainer[0]["gpu"] for engine in engines]
    if all(beside):
        return "on the trainer's GPU"
    return "with one engine on the trainer's GPU" if any(beside) else "across the link"


def where_they_meet(trainers, engines):
    if any(rank["gpu"] is None for rank in trainers + engines):
        return "in host memory"
    if len({rank["host"] for rank in trainers + engines}) > 1:
        return "across hosts"
    beside = [any(engine["gpu"] == trainer["gpu"] for trainer in trainers) for engine in engines]
    return "beside them" if all(beside) else "partly beside them" if any(beside) else "across the links"


def what_is_timed(row):
    """"direct, verified", "nccl broadcast, a call per parameter, movement alone", "PyTorch packed, movement alone"."""
    transport = "PyTorch" if row["transport"] == "torch" else row["transport"]
    parts = [transport if transport == "direct" else f"{transport} {row['method']}"]
    if row["granularity"] == "parameter" and row["transport"] != "torch":
        parts.append("a call per parameter")
    return ", ".join([*parts, "verified" if row["verify"] == "all" else "movement alone"])


def order(row):
    def position(values, value):
        return (values.index(value) if value in values else len(values), value)
    return (position(TRANSPORTS, row["transport"]), row["transport"] != "torch" and row["granularity"] == "parameter",
            position(METHODS, row["method"]), row["verify"] != "all")


def read_reports(paths):
    """{Place: its rows in order} and the names of the GPUs."""
    places, gpus = {}, []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                report = json.load(file)
            if report["schema"] != "weightcast.report/1" or report["command"] != "bench":
                stop(BAD_DATA, f"{path} is no report of bench")
            if not report["ok"]:
                say(f"{path}: this run failed: {report['error']['message']}")
            for rank in report["ranks"]:
                name = " ".join(rank["gpu"].split()[1:-1]) if rank["gpu"] else "host memory"
                if name not in gpus:
                    gpus.append(name)
            for row in report["rows"]:
                if not row["median_s"]:
                    say(f"{path}: the row '{what_is_timed(row)}' has no times")
                    continue
                place = Place(row["model"], row["model_bytes"], row["tp"], row["dp"], where_engines_are(report["ranks"]))
                places.setdefault(place, {})[what_is_timed(row)] = row
        except OSError as error:
            stop(NO_INPUT, f"cannot read {path}: {error.strerror}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            stop(BAD_DATA, f"{path} is no report of bench: {error!r}")
    ordered = sorted(places, key=lambda p: (p.model_bytes, p.tp, p.dp, p.where))
    return {place: sorted(places[place].values(), key=order) for place in ordered}, gpus


def ceiling_s(place, rows):
    """Seconds of one plain copy of the model, or None when no row was measured beside one."""
    rates = [row["ceiling_GBps"] for row in rows if row["ceiling_GBps"]]
    return place.model_bytes / 1e9 / statistics.median(rates) if rates else None


# --- the table --------------------------------------------------------------------------------------------------------

def milliseconds(seconds):
    value = seconds * 1e3
    return f"{value:.{2 if value < 99.995 else 1 if value < 999.95 else 0}f}"


def rate(gigabytes_per_second):
    return f"{gigabytes_per_second:.{2 if gigabytes_per_second < 99.995 else 1}f}"


def markdown(places, gpus):
    lines = ["| model and engines | update | cold ms | median ms | min to max ms | GB/s | of the ceiling | #wrong |",
             "|---|---|--:|--:|--:|--:|--:|--:|"]
    for place, rows in places.items():
        title, ceiling = place.title(), ceiling_s(place, rows)
        if ceiling:
            lines.append(f"| {title} | *one plain copy: the ceiling* | | {milliseconds(ceiling)} | | "
                         f"{rate(place.model_bytes / ceiling / 1e9)} | 1 | |")
            title = ""
        for row in rows:
            ratio = row["ratio_to_ceiling"] or (ceiling / row["median_s"] if ceiling else None)
            lines.append(f"| {title} | {what_is_timed(row)} | {milliseconds(row['cold_s'])} | "
                         f"{milliseconds(row['median_s'])} | {milliseconds(row['min_s'])} to {milliseconds(row['max_s'])} | "
                         f"{rate(row['model_GBps'])} | {f'{ratio:.3f}' if ratio else ''} | "
                         f"{row['wrong'] if row['wrong'] == 0 else '**%d**' % row['wrong']} |")
            title = ""
    lines += ["", f"{', '.join(gpus)}. Times of one update of the whole model; cold: the first after the group was formed. "
                  "GB/s: bytes of the model / median. Of the ceiling: the time of the plain copy measured beside the row "
                  "(PyTorch: the panel's) / median."]
    return "\n".join(lines) + "\n"


def replace_file(path, text):
    path = os.path.realpath(path)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=os.path.dirname(path), delete=False) as file:
        file.write(text)
    os.chmod(file.name, os.stat(path).st_mode & 0o777)
    os.replace(file.name, path)


def put_into_readme(path, table):
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        begin, end = text.find(BEGIN), text.find(END)
        if text.count(BEGIN) != 1 or text.count(END) != 1 or begin > end:
            stop(CONFIG, f"{path} must hold the line {BEGIN} and, after it, the line {END}, each once: "
                         "put them where the table belongs")
        replace_file(path, f"{text[:begin]}{BEGIN}\n\n{table}\n{text[end:]}")
    except OSError as error:
        stop(CANT_CREATE if os.path.exists(path) else NO_INPUT, f"{path}: {error.strerror}")


# --- the picture ------------------------------------------------------------------------------------------------------

def draw_panel(axes, place, rows):
    """The rows whose whiskers leave the panel."""
    ceiling = ceiling_s(place, rows)
    times = [row["median_s"] * 1e3 for row in rows]
    longest = max(times + [ceiling * 1e3 if ceiling else 0])
    limit = 1.02 * max(longest, *(min(row["max_s"] * 1e3, 1.2 * longest) for row in rows))
    cut = [row for row in rows if row["max_s"] * 1e3 > limit]
    for y, (row, median) in enumerate(zip(rows, times)):
        axes.barh(y, median, height=0.68, color=COLOURS[row["transport"]][row["verify"] != "all"])
        ends = [[max(median - row["min_s"] * 1e3, 0)], [max(row["max_s"] * 1e3 - median, 0)]]
        axes.errorbar(median, y, xerr=ends, color="#333333", linewidth=1, capsize=2.5)
        if row in cut:
            axes.plot(limit, y, marker=">", markersize=5, color="#333333", clip_on=False)
            axes.annotate(milliseconds(row["max_s"]), (limit, y), xytext=(-6, 0), textcoords="offset points", ha="right", va="center",
                          fontsize=7, bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"})
        for text, points, weight in ((f"{milliseconds(row['median_s'])} ms", 62, "bold"),
                                     (f"{rate(row['model_GBps'])} GB/s", 132, "normal")):
            axes.annotate(text, (1, y), xycoords=("axes fraction", "data"), xytext=(points, 0),
                          textcoords="offset points", ha="right", va="center", fontweight=weight)
    axes.set_xlim(0, limit)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [what_is_timed(row) + (f" ({row['wrong']} WRONG)" if row["wrong"] else "")
                                       for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_title(place.title(), loc="left", fontweight="bold", pad=22 if ceiling else 8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if ceiling:
        axes.axvline(ceiling * 1e3, color="black", linestyle=(0, (4, 2)), linewidth=1.3)
        right = ceiling * 1e3 > limit / 2
        axes.annotate(f"one plain copy: {milliseconds(ceiling)} ms, {rate(place.model_bytes / ceiling / 1e9)} GB/s",
                      (ceiling * 1e3, 1), xycoords=("data", "axes fraction"), xytext=(4 if right else -4, 4),
                      textcoords="offset points", ha="right" if right else "left", va="bottom", fontsize=8.5)
    return cut


def draw(places, gpus, prefix):
    try:
        import matplotlib
    except ImportError:
        stop(UNAVAILABLE, f"{sys.executable} has no matplotlib, so there is no picture: "
                          "install it (pip install matplotlib), or leave out --output")
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 10, "svg.hashsalt": "weightcast"})
    from matplotlib import pyplot
    bars = [len(rows) for rows in places.values()]
    figure, panels = pyplot.subplots(len(places), 1, figsize=(9.5, 0.25 * sum(bars) + 0.8 * len(bars) + 0.3), squeeze=False,
                                     height_ratios=[0.2 + count for count in bars], layout="constrained")
    cut = [draw_panel(axes, place, rows) for axes, (place, rows) in zip(panels[:, 0], places.items())]
    panels[-1, 0].set_xlabel(f"ms of one update of the whole model: median, and fastest to slowest ({', '.join(gpus)})" +
                             ("\n\u25b6 leaves the panel: the slowest took the ms that stand before it" if any(cut) else ""))
    try:
        figure.savefig(f"{prefix}.png", dpi=160, bbox_inches="tight")
        figure.savefig(f"{prefix}.svg", bbox_inches="tight", metadata={"Date": None})
    except OSError as error:
        stop(CANT_CREATE, f"cannot write {prefix}.png and .svg: {error.strerror}")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        stop(USAGE, f"{message}; see --help")


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                    usage=argparse.SUPPRESS, add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--readme")
    parser.add_argument("--output")
    parser.add_argument("reports", nargs="*")
    options = parser.parse_args()
    if options.help:
        print(__doc__.strip())
        return
    if not options.reports:
        parser.error("name the reports")
    places, gpus = read_reports(options.reports)
    if not places:
        stop(BAD_DATA, "there is no row in these reports")
    table = markdown(places, gpus)
    if options.markdown or not (options.readme or options.output):
        print(table, end="")
    picture = ""
    if options.readme and options.output:
        relative = os.path.relpath(f"{options.output}.svg", os.path.dirname(os.path.abspath(options.readme)))
        picture = f"\n![Time of one update beside one plain copy]({relative})\n"
    if options.readme:
        put_into_readme(options.readme, table + picture)
    if options.output:
        draw(places, gpus, options.output)


if __name__ == "__main__":
    main()
