"""What tests of the program share: an environment, jobs that are ended when they hang, safetensors files, a folder per test."""

import json
import os
import shutil
import struct
import subprocess
import tempfile
import unittest


def environment(extra=None):
    """Without settings of the program, not inside a job, and with weights in host memory, also where there are GPUs."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WEIGHTCAST_", "OMPI_COMM", "PMI", "SLURM_"))}
    return {**clean, "CUDA_VISIBLE_DEVICES": "", **(extra or {})}


def start(command, env=None, **keywords):
    return subprocess.Popen([str(word) for word in command], env=environment(env), text=True, stdin=subprocess.DEVNULL, **keywords)


def finish(job, timeout=60):
    """What subprocess.run() returns, but a job that hangs is ended as a whole."""
    try:
        out, err = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        job.terminate()  # mpirun takes its ranks along
        job.communicate()
        raise
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def run(command, timeout=60, **keywords):
    return finish(start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords), timeout)


def unfolded(text):
    """Header lines that were folded at 80 columns, as one line each."""
    return text.replace("\n#   ", " ")


def read_safetensors(path):
    """{name: (dtype, shape, bytes)}"""
    with open(path, "rb") as file:
        length, = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(length)), file.read()
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in header.items() if name != "__metadata__"}


def header_of(tensors):
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    return header


def data_of(tensors):
    return b"".join(data for _, _, data in tensors.values())


def write_safetensors(path, text, data):
    text = text if isinstance(text, bytes) else text.encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


class Workplace(unittest.TestCase):
    """A folder per test, and one for all of a class."""

    @classmethod
    def setUpClass(cls):
        cls.shared = tempfile.mkdtemp(prefix="weightcast-cli-")
        cls.addClassCleanup(shutil.rmtree, cls.shared)

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="weightcast-cli-")
        self.addCleanup(shutil.rmtree, self.folder)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def small_disk(self):
        """A folder on a disk of 64 KiB; the test is skipped where none can be mounted."""
        disk = self.path("disk")
        os.mkdir(disk)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
        if mounted.returncode != 0:
            self.skipTest("no right to mount a small file system")
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        return disk

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)
