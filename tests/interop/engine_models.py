#!/usr/bin/env python3
"""Into the models of vLLM's or SGLang's own classes: rank 0 publishes a checkpoint that transformers has written, each other rank
is a tensor-parallel worker whose parameters are the destinations, by apps/examples/engine_worker.py. Afterwards they are bit for
bit what the engine's own load_weights() makes of the checkpoint. On the CPU; exit code 77: the package is not there.

usage: mpiexec -n 3 python3 engine_models.py vllm|sglang [VARIANT ...]
"""

import os
import pathlib
import sys
import tempfile
import traceback
import types

import family_models as models  # first: it says so when a package is missing

os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo",
               "SGLANG_NCCL_SO_PATH": "none"}  # it would look for a GPU
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "apps/examples"))
try:
    import torch
    from mpi4py import MPI
    if sys.argv[1] == "vllm":
        import vllm.config
        import vllm.distributed
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.v1.worker.worker_base import WorkerWrapperBase
    else:
        from sglang.srt.configs.load_config import LoadConfig
        from sglang.srt.configs.model_config import ModelConfig
        from sglang.srt.distributed.bootstrap import init_parallel_runtime
        from sglang.srt.model_loader.loader import _initialize_model
        from sglang.srt.runtime_context import SpawnRanks, publish
        from sglang.srt.server_args import ServerArgs
        import vllm._custom_ops  # noqa: F401  what SGLang computes rotary embeddings with on a machine like this one
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
import engine_worker  # noqa: E402
import weightcast  # noqa: E402

COMM = MPI.COMM_WORLD
TRAINER, RANK, TP = COMM.rank == 0, COMM.rank - 1, COMM.size - 1
VARIANTS = {
    "vllm": ("llama untied", "llama tied", "qwen3 untied", "mistral untied", "gemma2 tied", "gemma3 tied", "phi3 untied",
             "olmo2 untied", "glm4 untied", "mixtral untied", "qwen2_moe untied", "qwen3_moe untied"),
    "sglang": ("llama untied", "llama tied", "qwen3 untied", "mistral untied", "phi3 untied", "olmo2 untied", "glm4 untied",
               "mixtral untied", "qwen2_moe untied", "qwen3_moe untied"),
}


def vllm_config(folder):
    """As LLM() makes it of engines.md's arguments, but for the worker, which would be the CPU's here."""
    return EngineArgs(str(folder), tensor_parallel_size=TP, distributed_executor_backend="external_launcher",
                      worker_extension_cls="engine_worker.WeightcastWorker", worker_cls="vllm.v1.worker.gpu_worker.Worker",
                      skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True).create_engine_config()


def vllm_model(folder, meeting):
    config = vllm_config(folder)
    with vllm.config.set_current_vllm_config(config):
        vllm.distributed.destroy_model_parallel()  # a model of experts wants other groups
        vllm.distributed.init_distributed_environment(TP, RANK, f"file://{meeting}", RANK, "gloo")
        vllm.distributed.initialize_model_parallel(TP)
        return initialize_model(vllm_config=config)


def make_worker(folder):
    """What has the methods of engine_worker.py: in vLLM its own worker, without a GPU."""
    if sys.argv[1] != "vllm":
        return engine_worker.WeightcastWorker()
    wrapper = WorkerWrapperBase()
    wrapper.init_worker([dict(vllm_config=vllm_config(folder), local_rank=RANK, rank=RANK, distributed_init_method="env://",
                              is_driver_worker=True)])
    return wrapper.worker


def sglang_model(folder, meeting):
    os.environ["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = f"file://{meeting}"
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join([str(min(os.sched_getaffinity(0)))] * TP)
    arguments = ServerArgs(model_path=str(folder), device="cpu", tp_size=TP, skip_tokenizer_init=True, dtype="bfloat16",
                           attention_backend="torch_native", log_level="error")
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=RANK, gpu_id=RANK))
    if not torch.distributed.is_initialized():
        init_parallel_runtime(server_args=arguments, device="cpu", dist_port=0)
    return _initialize_model(ModelConfig.from_server_args(arguments), LoadConfig())


def make_model(*arguments):
    torch.set_default_dtype(torch.bfloat16)
    model = (vllm_model if sys.argv[1] == "vllm" else sglang_model)(*arguments)
    torch.set_default_dtype(torch.float32)
    for tensor in model.parameters():
        tensor.data.view(torch.uint8).fill_(7)
    return model


def published(folder, model):
    """The worker's parameters after an update."""
    worker = make_worker(folder)
    worker.model_runner = types.SimpleNamespace(model=model)
    worker.weightcast_join(str(folder), device="cpu", timeout_s=60)
    assert worker.weightcast_receive() == 1
    assert worker.weightcast_receive() is None
    worker.weightcast_leave()
    return dict(model.named_parameters())


def loaded(folder, model):
    """Those of a worker that has read the checkpoint itself."""
    model.load_weights(iter(models.read_tensors(folder).items()))
    return dict(model.named_parameters())


def check(folder, meeting):
    """The parameters of this rank that differ."""
    if TRAINER:
        with weightcast.Trainer(folder, timeout_s=60) as trainer:
            trainer.publish(1, models.text_tensors(folder))
        return []
    ours = published(folder, make_model(folder, meeting))
    theirs = loaded(folder, make_model(folder, meeting))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    return [name for name, tensor in ours.items() if not torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8))]


def main():
    failed = False
    with tempfile.TemporaryDirectory() as mine:
        place = pathlib.Path(COMM.bcast(mine))
        for index, variant in enumerate(sys.argv[2:] or VARIANTS[sys.argv[1]]):
            if TRAINER:
                models.make_checkpoint(variant, 1, models.forms(variant)[-1], place / str(index))
            COMM.barrier()
            try:
                different = check(place / str(index), place / "meeting")
            except BaseException:  # the other ranks wait for this one
                traceback.print_exc()
                COMM.Abort(1)
            different = COMM.gather(different)
            if TRAINER:
                failed |= any(different)
                print(f"{variant}, tp {TP}: {different if any(different) else 'every byte as load_weights() has it'}", flush=True)
        failed = COMM.bcast(failed)
    sys.exit(1 if failed else 0)


main()
