"""Several processes: joining them, sharing a step's rows, and the two ways to hold the weights (DDP, FSDP2).

The processes are started by `torchrun` or `accelerate launch`; both tell each its number in the environment. Every
process takes its rows of a step's batch, and gradients are averaged, so that W processes do what one would do.
"""

from __future__ import annotations

import atexit
import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from star_cli.errors import OptionError
from star_cli.models.attention import CrossAttention
from star_cli.training.config import LoopConfig
from star_cli.training.stage import Stage


@dataclass(frozen=True)
class Processes:
    """Which of the processes this one is, and where it computes."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """The one that writes, shows and draws."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, (n,)."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


def join(config: LoopConfig) -> Processes:
    """Meet the processes that were started together with this one; on its own it is the only one.

    Raises:
        OptionError: `accelerate launch` was told otherwise than the configuration, or there is no such device.
    """
    from star_cli.hardware import choose_device

    device, _ = choose_device(config.device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    _check_accelerate(config)
    if world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # states and objects travel through the CPU, gradients on a GPU through nccl
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    if not dist.is_initialized():
        return Processes(device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    return Processes(device, dist.get_rank(), dist.get_world_size())


def is_main() -> bool:
    """Is this the process that writes and shows? True where there is only one. Known before `join`."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def main_first() -> Iterator[None]:
    """What only one process may do at a time: the first one does it, then the others find it done."""
    processes = Processes(torch.device("cpu"), dist.get_rank(), dist.get_world_size()) if _joined() else None
    if processes and not processes.is_main:
        processes.wait()
    yield
    if processes and processes.is_main:
        processes.wait()


def _joined() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_accelerate(config: LoopConfig) -> None:
    """What `accelerate launch` was told beside the number of processes is for the configuration to say."""
    told = os.environ
    precisions = {"fp16": "float16", "bf16": "bfloat16"}
    precision = precisions.get(told.get("ACCELERATE_MIXED_PRECISION", "no"))
    steps = told.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if told.get("ACCELERATE_USE_DEEPSPEED") == "true" or told.get("ACCELERATE_USE_MEGATRON_LM") == "true":
        raise OptionError("training knows DDP and FSDP, not DeepSpeed or Megatron", 'set loop.parallel = "fsdp"')
    if told.get("ACCELERATE_USE_FSDP") == "true" and config.parallel != "fsdp":
        raise OptionError("accelerate was told to use FSDP, the configuration says DDP", 'set loop.parallel = "fsdp"')
    if precision is not None and precision != config.precision:
        raise OptionError(
            f"accelerate was told {precision}, the configuration says {config.precision}",
            f'set loop.precision = "{precision}", or leave out --mixed_precision',
        )
    if steps not in ("1", str(config.accumulate)):
        raise OptionError(
            f"accelerate was told {steps} accumulation steps, the configuration {config.accumulate}",
            f"set loop.accumulate = {steps}",
        )


# -- the stage on several processes -----------------------------------------------------------------------------------


def wrap(stage: Stage, config: LoopConfig, processes: Processes) -> nn.Module:
    """What the loop calls and optimises, on its device.

    One process, or a stage that does not share rows: the stage itself. DDP: around the stage. FSDP2: a copy in shares,
    while the stage stays whole on the CPU and takes the weights at the end.

    Raises:
        OptionError: a setting that does not go with FSDP2.
    """
    if processes.world == 1 or not stage.shards:
        stage.to_device(processes.device)
        _compile(stage, config)
        same_everywhere(stage)
        return stage
    if not processes.is_main:
        torch.manual_seed(torch.initial_seed() + processes.rank)  # each process draws its own noise
    if config.parallel == "fsdp":
        if stage.needs_whole:
            raise OptionError(
                f"stage {stage.name} needs its weights whole and in place, FSDP learns on a copy in shares",
                'set loop.parallel = "ddp"',
            )
        return _fully_shard(stage, config, processes)
    stage.to_device(processes.device)
    _compile(stage, config)
    return DistributedDataParallel(stage, find_unused_parameters=stage.leaves_unused)


def same_everywhere(stage: Stage) -> None:
    """Give every process the first one's weights."""
    if _joined():
        for value in (*stage.parameters(), *stage.buffers()):
            dist.broadcast(value.detach(), src=0)


def is_sharded(engine: nn.Module) -> bool:
    """Whether each process holds a share of the weights."""
    if not _joined():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(engine, FSDPModule)


def plain(engine: nn.Module) -> Stage:
    """The stage behind what `wrap` made, its parameters by their own names."""
    return engine.module if isinstance(engine, DistributedDataParallel) else engine  # type: ignore[return-value]


def gradients_later(engine: nn.Module, later: bool) -> AbstractContextManager[None]:
    """Gradients stay with their process: another part of the same batch follows."""
    if is_sharded(engine):
        engine.set_requires_gradient_sync(not later)  # type: ignore[operator]
    elif later and isinstance(engine, DistributedDataParallel):
        return engine.no_sync()
    return nullcontext()


def layout_of(engine: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Callable[[str], Tensor | None] | None:
    """How a run's state is spread over the processes, by the path of a tensor in it; None where it is whole."""
    if not is_sharded(engine):
        return None
    parameters = dict(engine.named_parameters())
    numbered = [[one for group in optimizer.param_groups for one in group["params"]] for optimizer in optimizers]

    def layout(path: str) -> Tensor | None:
        part, _, rest = path.partition("/")
        if part in ("stage", "average"):
            return parameters.get(rest)
        optimizer, _, rest = rest.partition("/")
        section, _, rest = rest.partition("/")
        if part == "optimizers" and section == "state":
            return numbered[int(optimizer)][int(rest.partition("/")[0])]
        return None

    return layout


def whole(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Shares put together, on the CPU. Every process must call this."""
    return {key: put_together(value).cpu() for key, value in tensors.items()}


def put_together(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a share."""
    if not _joined():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _fully_shard(stage: Stage, config: LoopConfig, processes: Processes) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if config.matrix_learning_rate:
        raise OptionError(
            "Muon needs whole matrices, FSDP holds shares of them",
            'set loop.matrix_learning_rate = 0, or loop.parallel = "ddp"',
        )
    if config.precision == "float16":
        raise OptionError("FSDP does not train in float16", 'set loop.precision = "bfloat16"')
    same_everywhere(stage)
    stage.to_device(processes.device)  # what helps must be there ...
    stage.to("cpu")  # ... but the whole of what learns stays outside the GPU
    kept = [stage.source, *stage._frozen, stage._frozen]
    engine = copy.deepcopy(stage, {id(one): one for one in kept})
    _compile(engine, config)
    # text keys and values are views of one product, and nothing writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for unit in engine.units():
        for module in unit.modules():
            if isinstance(module, CrossAttention):  # its text part is asked for before its block is
                fully_shard(module, mesh=mesh)
                register_fsdp_forward_method(module, "text_keys_values")
        fully_shard(unit, mesh=mesh)
    fully_shard(engine, mesh=mesh)
    if processes.device.type == "cpu":  # gloo has no mean
        for module in engine.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    engine.to(processes.device)  # buffers; parameters are there
    return engine


def _compile(stage: Stage, config: LoopConfig) -> None:
    """Block by block: compiled once for each shape of batch, and used for all of them.

    Few kinds of batches take turns; code for any shape, which the second kind would call for, is slower.
    """
    if not config.compile:
        return
    units: Sequence[nn.Module] = stage.units()
    if not units:
        raise OptionError(f"stage {stage.name} has no blocks to compile", "set loop.compile = false")
    for unit in units:
        unit.compile(dynamic=False)
