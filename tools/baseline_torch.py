#!/usr/bin/env python3
"""What a user would take instead of weightcast, measured: torch.distributed from one trainer rank to tp engine ranks.

usage: mpirun -n R python3 tools/baseline_torch.py --model LIST [options]          R = 1 + tp; one rank per GPU

Rank 0 holds two versions of all parameters, one the bitwise complement of the other, so that each update changes every
byte. The engine ranks hold the real destinations: qkv_proj and gate_up_proj fused, everything cut for tensor
parallelism as SGLang and vLLM do. A row per model and method:

  seed            for each parameter: create an empty tensor, broadcast, synchronise, copy into place, empty the cache
  per-parameter   for each parameter: broadcast, straight into place where the destination is the whole parameter and
                  contiguous, otherwise through a temporary tensor; nothing waits for the device in between
  packed          buckets of 256 MiB on two streams: the trainer flattens, one broadcast per bucket, engines unpack

Generous to PyTorch: no request, no lookup by name, no verification is timed. Each time is the slowest rank's, from
after a barrier and a device synchronisation to after another synchronisation. Every row forms its own process group
and warms it up with a barrier, as the seed does, so that `cold` means what it means in `weightcast bench`. Before the
last update the destinations are zeroed, after it every engine rank compares every bit of every parameter: #wrong.

Columns, report (--json) and exit codes are those of `weightcast bench`; egress counts each byte once per broadcast,
because a ring sends it once. Rendezvous: MASTER_ADDR (default 127.0.0.1) and MASTER_PORT (default: made of the
job's id).
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
import traceback
import zlib

from baseline_model import (CANT_CREATE, CONFIG, DEADLINE, INTERNAL, MISMATCH, OK, SHAPES, UNAVAILABLE, USAGE,
                            Failure, cut, layout, load_config, parameters_of)

METHODS = {"seed": "parameter", "per-parameter": "parameter", "packed": "model"}  # and their granularity
BUCKET_BYTES = 256 << 20


def launch_number(variables, otherwise):
    return next((int(os.environ[name]) for name in variables if os.environ.get(name, "").isdigit()), otherwise)


RANK = launch_number(("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"), 0)
WORLD = launch_number(("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"), 1)
LOCAL_RANK = launch_number(("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"), RANK)


# --- the measurement --------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def deadline(seconds, what):
    """Ends this process when the body takes longer: what hangs inside torch or NCCL cannot be interrupted."""
    failure = Failure(DEADLINE, f"{what} took longer than {seconds:.0f} s: a rank is stuck or --timeout is too short")
    timer = threading.Timer(seconds, leave, [failure])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Device:
    """Where this rank's tensors are: a GPU, bound before anything else touches one, or the host's memory."""

    def __init__(self, torch, backend, gpus):
        self.torch, self.gpu = torch, None
        if backend == "gloo":
            self.device, self.name = torch.device("cpu"), None
            return
        count = torch.cuda.device_count()
        self.gpu = gpus[RANK] if gpus else LOCAL_RANK
        if self.gpu >= count:
            raise Failure(CONFIG, f"rank {RANK} is to use GPU {self.gpu}, but PyTorch {torch.__version__} sees {count}: "
                                  "NCCL wants one GPU per rank; start fewer ranks, or use --backend gloo")
        torch.cuda.set_device(self.gpu)
        self.device = torch.device("cuda", self.gpu)
        properties = torch.cuda.get_device_properties(self.gpu)
        place = [getattr(properties, f"pci_{part}_id", 0) for part in ("domain", "bus", "device")]
        self.name = "{} {} {:04X}:{:02X}:{:02X}.0".format(self.gpu, properties.name, *place)

    def synchronize(self):
        if self.gpu is not None:
            self.torch.cuda.synchronize(self.device)

    def barrier(self):
        if self.gpu is None:
            self.torch.distributed.barrier()
        else:
            self.torch.distributed.barrier(device_ids=[self.gpu])
        self.synchronize()

    def empty_cache(self):
        if self.gpu is not None:
            self.torch.cuda.empty_cache()

    def streams(self):
        """Two contexts to enter in turn."""
        if self.gpu is None:
            return [contextlib.nullcontext()] * 2
        return [self.torch.cuda.stream(self.torch.cuda.Stream(self.device)) for _ in range(2)]


class Weights:
    """One rank's side of the update of one model."""

    def __init__(self, torch, device, config, tp):
        self.torch, self.device, self.tp = torch, device, tp
        self.parameters = parameters_of(config)
        self.dtype = getattr(torch, config.dtype)
        self.bits = torch.int32 if config.dtype == "float32" else torch.int16
        self.item_bytes = 4 if config.dtype == "float32" else 2
        self.version = 0
        self.cuts = [cut(p, tp, max(RANK - 1, 0)) for p in self.parameters]
        if RANK == 0:
            self.versions = [[self.make(i, v) for i in range(len(self.parameters))] for v in (0, 1)]
        else:
            shapes, first_rows = layout(self.parameters, tp)
            self.tensors = {name: torch.zeros(shape, dtype=self.dtype, device=device.device)
                            for name, shape in shapes.items()}
            self.places = []
            for p, (dimension, _, length) in zip(self.parameters, self.cuts):
                rows = p.shape[0] if dimension else length
                self.places.append(self.tensors[p.engine_tensor].narrow(0, first_rows[p.name], rows))
        self.buckets, self.bucket_elements = [], 0

    def elements(self, i):
        return math.prod(self.parameters[i].shape)

    def size_bytes(self):
        return sum(map(self.elements, range(len(self.parameters)))) * self.item_bytes

    def make(self, i, version):
        """Parameter i of version 0 or 1, its complement: bits that depend on i and the position, on any device."""
        torch, step = self.torch, 1 << 24
        result = torch.empty(self.elements(i), dtype=self.bits, device=self.device.device)
        for begin in range(0, result.numel(), step):
            part = result[begin:begin + step]
            x = torch.arange(begin, begin + part.numel(), dtype=torch.int64, device=self.device.device)
            x = (x + (i + 1 << 40)) * -0x61C8864680B583EB
            x = (x ^ (x >> 29)) * -0x4B47D0C5E6A4F1D3
            part.copy_(x >> 24)  # the lowest bits of that
        return (~result if version else result).view(self.dtype).view(self.parameters[i].shape)

    def wrong(self):
        """Parameters of which any bit is not what the current version has, padding that is not zero included."""
        if RANK == 0:
            return 0
        count = 0
        for i, place in enumerate(self.places):
            expected = self.make(i, self.version).narrow(*self.cuts[i])
            count += not self.torch.equal(place.view(self.bits), expected.view(self.bits))
        for p, place in zip(self.parameters, self.places):
            if p.kind == "vocabulary":
                count += bool(self.tensors[p.engine_tensor][place.shape[0]:].view(self.bits).any())
        return count

    def forget(self):
        """Nothing that the last update should have written can be left over from an earlier one."""
        for tensor in self.tensors.values() if RANK else ():
            tensor.zero_()

    # --- the methods: each moves the whole model once -----------------------------------------------------------------

    def seed(self):
        broadcast = self.torch.distributed.broadcast
        for i, p in enumerate(self.parameters):
            if RANK == 0:
                broadcast(self.versions[self.version][i], 0)
                self.device.synchronize()
                continue
            full = self.torch.empty(p.shape, dtype=self.dtype, device=self.device.device)
            broadcast(full, 0)
            self.device.synchronize()
            self.places[i].copy_(full.narrow(*self.cuts[i]))
            del full
            self.device.empty_cache()

    def in_place(self, i):
        return self.places[i].shape == self.parameters[i].shape and self.places[i].is_contiguous()

    def per_parameter(self):
        broadcast = self.torch.distributed.broadcast
        for i, p in enumerate(self.parameters):
            if RANK == 0:
                broadcast(self.versions[self.version][i], 0)
            elif self.in_place(i):
                broadcast(self.places[i], 0)
            else:
                full = self.torch.empty(p.shape, dtype=self.dtype, device=self.device.device)
                broadcast(full, 0)
                self.places[i].copy_(full.narrow(*self.cuts[i]))

    def prepare_packed(self):
        """Buckets of neighbours, 256 MiB or one parameter that is larger; a buffer and a stream for every second one."""
        limit = BUCKET_BYTES // self.item_bytes
        filled = limit
        for i in range(len(self.parameters)):
            if filled + self.elements(i) > limit:
                self.buckets.append([])
                filled = 0
            self.buckets[-1].append(i)
            filled += self.elements(i)
        self.bucket_elements = max(sum(map(self.elements, bucket)) for bucket in self.buckets)
        self.buffers = [self.torch.empty(self.bucket_elements, dtype=self.dtype, device=self.device.device)
                        for _ in range(2)]
        self.streams = self.device.streams()

    def packed(self):
        torch = self.torch
        for b, bucket in enumerate(self.buckets):
            with self.streams[b % 2]:
                sizes = [self.elements(i) for i in bucket]
                buffer = self.buffers[b % 2][:sum(sizes)]
                if RANK == 0:
                    torch.cat([self.versions[self.version][i].view(-1) for i in bucket], out=buffer)
                torch.distributed.broadcast(buffer, 0)
                if RANK > 0:
                    for i, flat in zip(bucket, buffer.split(sizes)):
                        self.places[i].copy_(flat.view(self.parameters[i].shape).narrow(*self.cuts[i]))

    def staging_bytes(self, method):
        """Memory that an engine rank needs beside its weights."""
        if method == "packed":
            return 2 * self.bucket_elements * self.item_bytes
        return max((self.elements(i) * self.item_bytes for i in range(len(self.parameters))
                    if RANK > 0 and (method == "seed" or not self.in_place(i))), default=0)


def reduce(torch, device, value, operation):
    tensor = torch.tensor([value], dtype=torch.float64, device=device.device)
    torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, operation))
    return tensor.item()


def measure(torch, device, weights, method, options):
    """One row, in the process group that is formed."""
    run = {"seed": weights.seed, "per-parameter": weights.per_parameter, "packed": weights.packed}[method]
    if method == "packed":
        weights.prepare_packed()

    def update():
        weights.version = 1 - weights.version
        with deadline(options.timeout, f"an update by the method {method}"):
            device.synchronize()
            device.barrier()
            start = time.perf_counter()
            run()
            device.synchronize()
            return reduce(torch, device, time.perf_counter() - start, "MAX")

    cold = update()
    for _ in range(options.warmup):
        update()
    seconds = [update() for _ in range(options.repeat - 1)]
    weights.forget()
    seconds = sorted([*seconds, update()])
    size_bytes = weights.size_bytes()
    with deadline(options.timeout + size_bytes / 100e6, "the comparison"):
        wrong = int(reduce(torch, device, weights.wrong(), "SUM"))
        staging = int(reduce(torch, device, weights.staging_bytes(method), "MAX"))
    median = statistics.median(seconds)
    return {"model_bytes": size_bytes, "device": "host" if device.gpu is None else "cuda", "transport": "torch",
            "method": method, "granularity": METHODS[method], "tp": weights.tp, "dp": 1, "verify": "none",
            "cold_s": cold, "median_s": median, "min_s": seconds[0], "max_s": seconds[-1],
            "p99_s": seconds[math.ceil(0.99 * len(seconds)) - 1], "model_GBps": size_bytes / median / 1e9,
            "egress_bytes": size_bytes, "staging_bytes": staging, "wrong": wrong, "ceiling_GBps": None,
            "ratio_to_ceiling": None}


# --- what it prints and writes ----------------------------------------------------------------------------------------

def format_size(size):
    if size < 1000:
        return f"{size} B"
    unit = -1
    while size >= 999.5 and unit < 3:
        size, unit = size / 1000, unit + 1
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f} {('kB', 'MB', 'GB', 'TB')[unit]}"


def print_header(options, device):
    print(f"# baseline_torch: 1 trainer + 1 x tp {options.tp} engine ranks, memory {'host' if device.gpu is None else 'cuda'}; "
          f"{options.repeat} updates after {options.warmup} to warm up")
    print("# times in ms of the slowest rank, nothing is verified inside them; GB/s are bytes of the model / median")
    print("{:<14} {:>9} {:<9} {:<13} {:<9} {:<6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7} {:>9} {:>6} {:>8} {:>8}".format(
        "model", "size", "transport", "method", "unit", "verify", "cold", "median", "min", "max", "p99", "GB/s", "egress",
        "staging", "#wrong", "ceiling", "ratio"), flush=True)


def print_row(row):
    times = " ".join(f"{row[key] * 1e3:>9.3f}" for key in ("cold_s", "median_s", "min_s", "max_s", "p99_s"))
    print(f"{row['model']:<14} {format_size(row['model_bytes']):>9} {row['transport']:<9} {row['method']:<13} "
          f"{row['granularity']:<9} {row['verify']:<6} {times} {row['model_GBps']:>7.2f} "
          f"{row['egress_bytes'] / row['model_bytes']:>7.4f} {format_size(row['staging_bytes']):>9} {row['wrong']:>6} "
          f"{'-':>8} {'-':>8}", flush=True)


def write_report(path, report):
    folder, name = os.path.split(os.path.abspath(path))
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, prefix=name, delete=False) as file:
            json.dump(report, file, indent=2)
            file.write("\n")
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise Failure(CANT_CREATE, f"cannot write the report {path}: {error.strerror}") from error


class Parser(argparse.ArgumentParser):
    """Speaks on rank 0 only and ends with the exit code of a usage error."""

    def _print_message(self, message, file=None):
        if RANK == 0:
            super()._print_message(message, file)

    def error(self, message):
        raise Failure(USAGE, f"{message}; see --help")


def parse_options():
    def comma_list(text):
        return text.split(",")

    def count(text):
        value = int(text)
        if value < 0:
            raise ValueError
        return value

    def gpu_list(text):
        return [count(item) for item in text.split(",")]

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                    usage=argparse.SUPPRESS)
    parser.add_argument("--model", type=comma_list, required=True, metavar="LIST",
                        help=f"of {', '.join(SHAPES)}, or config.json files")
    parser.add_argument("--tp", type=count, metavar="N", help="tensor-parallel engine ranks; default: ranks - 1")
    parser.add_argument("--method", type=comma_list, default=list(METHODS), metavar="LIST",
                        help=f"of {', '.join(METHODS)}; default: all")
    parser.add_argument("--repeat", type=count, default=20, metavar="N", help="timed updates of each row; default 20")
    parser.add_argument("--warmup", type=count, default=2, metavar="N", help="updates before them; default 2")
    parser.add_argument("--gpus", type=gpu_list, metavar="LIST", help="GPU of each rank; default: one after the other")
    parser.add_argument("--backend", choices=("nccl", "gloo"), default="nccl", help="gloo: in host memory")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="longest wait; default 60")
    parser.add_argument("--json", metavar="FILE", help="write a report")
    options = parser.parse_args()
    for method in options.method:
        if method not in METHODS:
            raise Failure(USAGE, f"'{method}' is not a method: choose of {', '.join(METHODS)}")
    if options.repeat < 1 or not options.timeout > 0:
        raise Failure(USAGE, "--repeat and --timeout must be positive")
    options.tp = WORLD - 1 if options.tp is None else options.tp
    if WORLD < 2 or WORLD != options.tp + 1:
        raise Failure(CONFIG, f"{WORLD} ranks are not 1 trainer + tp {options.tp} engine ranks: "
                              "start it as mpirun -n $((1 + TP)) python3 tools/baseline_torch.py ...")
    if options.json and not os.access(os.path.dirname(os.path.abspath(options.json)), os.W_OK):
        raise Failure(CANT_CREATE, f"cannot write the report {options.json}: its folder is not there or not writable")
    if options.gpus and len(options.gpus) != WORLD:
        raise Failure(CONFIG, f"--gpus names {len(options.gpus)} GPUs for {WORLD} ranks")
    if options.gpus and len(set(options.gpus)) != WORLD and "NCCL_HOSTID" not in os.environ:
        raise Failure(CONFIG, "--gpus names a GPU twice: NCCL refuses two ranks on one GPU")
    return options


def import_torch(options):
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        raise Failure(CONFIG, f"PyTorch cannot be imported by {sys.executable} ({error}): install it, "
                              "or start this script with the Python that has it") from error
    if not torch.distributed.is_available():
        raise Failure(CONFIG, f"PyTorch {torch.__version__} was built without torch.distributed")
    if options.backend == "nccl" and not torch.distributed.is_nccl_available():
        raise Failure(CONFIG, f"PyTorch {torch.__version__} was built without NCCL: use --backend gloo")
    if options.backend == "nccl" and not torch.cuda.is_available():
        raise Failure(CONFIG, "PyTorch finds no usable GPU (no driver, or a build for the CPU): use --backend gloo")
    return torch


def bench(torch, options, report):
    device = Device(torch, options.backend, options.gpus)
    configs = [load_config(name) for name in options.model]
    job = os.environ.get("PMIX_NAMESPACE") or os.environ.get("SLURM_JOB_ID", "0") + os.environ.get("SLURM_STEP_ID", "")
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = int(os.environ.get("MASTER_PORT") or 20000 + zlib.crc32(job.encode()) % 10000)  # below the ephemeral ones
    if address == "127.0.0.1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    limit = datetime.timedelta(seconds=3 * options.timeout)  # later than deadline(), which says what took so long
    with deadline(2 * options.timeout, f"the rendezvous at {address}:{port}"):
        store = torch.distributed.TCPStore(address, port, WORLD, RANK == 0, timeout=limit)
        store.set(f"rank {RANK}", json.dumps({"rank": RANK, "role": "engine" if RANK else "trainer",
                                              "host": socket.gethostname(), "gpu": device.name}))
        report["ranks"] = [json.loads(store.get(f"rank {rank}")) for rank in range(WORLD)]
    report["versions"].update(torch=torch.__version__, cuda=torch.version.cuda or "not built in")
    if options.backend == "nccl":
        report["versions"]["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    if RANK == 0:
        print_header(options, device)
    for name, config in zip(options.model, configs):
        for method in options.method:
            with deadline(2 * options.timeout, "forming the process group"):
                prefix = torch.distributed.PrefixStore(f"{name} {method}", store)
                bound = {"device_id": device.device} if options.backend == "nccl" else {}
                torch.distributed.init_process_group(options.backend, store=prefix, rank=RANK, world_size=WORLD,
                                                     timeout=limit, **bound)
                device.barrier()
            if method == options.method[0]:
                weights = None  # the last model's, before there is memory for another
                device.empty_cache()
                with deadline(options.timeout + sum(map(math.prod, (p.shape for p in parameters_of(config)))) / 10e6,
                              "making the weights"):
                    weights = Weights(torch, device, config, options.tp)
                    device.synchronize()
                    device.barrier()
            row = {"model": name, **measure(torch, device, weights, method, options)}
            report["rows"].append(row)
            if RANK == 0:
                print_row(row)
            with deadline(options.timeout, "leaving the process group"):
                torch.distributed.destroy_process_group()
    wrong = sum(row["wrong"] for row in report["rows"])
    if wrong:
        raise Failure(MISMATCH, f"{wrong} parameters arrived wrong: see the column #wrong")
    with deadline(options.timeout, "the end"):  # rank 0 serves the store until nobody needs it
        store.set(f"end {RANK}", "")
        if RANK == 0:
            store.wait([f"end {rank}" for rank in range(WORLD)], limit)


REPORT = {"schema": "weightcast.report/1", "command": "bench", "ok": True, "exit_code": OK,
          "versions": {"weightcast": "not used", "mpi": "not used", "nccl": "not used", "cuda": "not used",
                       "hdf5": "not used", "torch": "unknown"},
          "rows": [], "ranks": [], "error": None}
REPORT_PATH = None


def leave(failure, everybody=False):
    """Says what failed, in the report too, and ends this process; `everybody`: each rank fails alike, one speaks."""
    REPORT.update(ok=False, exit_code=failure.code, error={
        "code": failure.code, "stage": None, "rank": None if everybody else RANK, "message": str(failure)})
    if RANK == 0 or not everybody:
        print(f"baseline_torch: error: {'' if everybody else f'rank {RANK}: '}{failure} (exit status {failure.code})",
              file=sys.stderr, flush=True)
    if RANK == 0 and REPORT_PATH:
        with contextlib.suppress(Failure):
            write_report(REPORT_PATH, REPORT)
    sys.stdout.flush()
    if RANK > 0:
        time.sleep(2)  # mpirun ends everybody when the first rank leaves: rank 0 has something to say and write first
    os._exit(failure.code)  # a process group may be half way through something that never ends


def main():
    global REPORT_PATH
    everybody = True
    try:
        options = parse_options()
        REPORT_PATH = options.json
        for name in options.model:
            for parameter in parameters_of(load_config(name)):
                cut(parameter, options.tp, 0)
        torch = import_torch(options)
        everybody = False
        bench(torch, options, REPORT)
        if RANK == 0 and options.json:
            write_report(options.json, REPORT)
    except Failure as failure:
        leave(failure, everybody or failure.code == MISMATCH)
    except RuntimeError as error:  # torch's own are all of this kind: a lost peer, NCCL, no memory left
        leave(Failure(UNAVAILABLE, str(error).strip().split("\n", maxsplit=1)[0][:200]))
    except Exception as error:
        traceback.print_exc()
        leave(Failure(INTERNAL, repr(error)))


if __name__ == "__main__":
    main()
