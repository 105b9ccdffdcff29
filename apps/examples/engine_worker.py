"""Weights of a trainer in the workers of vLLM and SGLang: a worker's own parameters are the destinations of every update.

In vLLM it is `worker_extension_cls="engine_worker.WeightcastWorker"`; engines.md, beside this file, has the rest.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools/python"))
import weightcast  # noqa: E402


def destinations(model):
    """The parameters of a worker's model, fused and sharded as they are there, under weightcast's names."""
    return {name.replace(".experts.routed_experts.", ".experts."): tensor for name, tensor in model.named_parameters()}


class WeightcastWorker:
    """What vLLM adds to each of its workers; call it by LLM.collective_rpc()."""

    def weightcast_join(self, model, device="cuda", **options):
        """Becomes an engine rank; `model` and `options` as everybody in the update group says them."""
        self.weightcast_engine = weightcast.Engine(model, destinations=destinations(self.model_runner.model), device=device,
                                                   **options)

    def weightcast_receive(self):
        """The version that the worker has now; None: the trainer has left."""
        update = self.weightcast_engine.receive()
        return update.version if update else None

    def weightcast_leave(self):
        self.weightcast_engine.close()
