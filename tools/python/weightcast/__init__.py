"""Weights from a trainer to engines, all ranks or none: weightcast for Python, over its C interface (weightcast.h).

Rank 0 of an MPI communicator is the trainer, every other rank an engine rank; each in a process of its own:

    with weightcast.Trainer("model/config.json") as trainer:                    # rank 0
        for version, batch in enumerate(batches, 1):
            step(model, batch)
            trainer.publish(version, model.state_dict())                        # fp32 masters are rounded to bf16

    with weightcast.Engine("model/config.json", destinations=model.state_dict()) as engine:   # the others
        while engine.receive():                                                 # until the trainer leaves
            sample(model)                                                       # with the new weights

With `delta_limit=0.4` in everybody's options only what changed is sent after the first version: a few percent of the weights
in a step of reinforcement learning.

A trainer of several ranks, such as one of torch's fully_shard (FSDP2), publishes from all of them, each what it has:

    trainer = weightcast.Trainer("model/config.json", trainers=R)               # ranks 0 ... R-1
    trainer.publish(version, model.state_dict())                                # DTensors; nothing is gathered
    engine = weightcast.Engine("model/config.json", trainers=R, ...)            # the others

Tensors are taken where they are, without copies: torch tensors, numpy arrays, and whatever else has
__cuda_array_interface__ or __array_interface__, of any strides: transposed, reversed, expanded, parts of others. As
destinations all are taken with which no two elements share memory. numpy has no bfloat16: give (array of uint16, "BF16").
Calls that move weights wait for torch's work on the GPU first; whoever uses another library's streams synchronises them
before.

An engine without destinations keeps two versions in memory of its own: see Engine.serving().

Errors are WeightcastError. An update that fails leaves the old version where it was, on all ranks, which all raise the
same error; go on and publish again. Only when a rank is lost (error.lost) is the job over: then call comm.Abort().
Start programs with `python3 -m mpi4py`, so that any other uncaught exception ends all ranks, too.

The library is $WEIGHTCAST_LIBRARY, or libweightcast.so.1 inside or beside this package, or where `cmake --install` or, run
from the source tree, a build in build/host or build/cuda puts it. It must use the MPI library that mpi4py uses.
`python3 -m weightcast` says what is found and what is missing. Nothing here is thread-safe, but for serving(); other Python
threads run during all calls.
"""

from ._library import Code, WeightcastError
from ._update import Engine, Served, Tensor, Trainer, Update

__all__ = ["Code", "Engine", "Served", "Tensor", "Trainer", "Update", "WeightcastError", "__version__"]
__version__ = "0.1.0"

for _public in (Code, Engine, Served, Tensor, Trainer, Update, WeightcastError):
    _public.__module__ = __name__  # as it is imported, also in tracebacks and pickles
