"""What a training step computes and keeps, counted on tensors that have a shape and no memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from variational_diffusion import objective
from variational_diffusion.config import Component, ModelConfig, TrainingConfig
from variational_diffusion.model import VDM, build
from variational_diffusion.schedules import CALLS_PER_MEASUREMENT
from variational_diffusion.training import make_optimizers
from variational_diffusion.training.posthoc import WIDTHS
from variational_diffusion.training.sharding import recompute_activations

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return flop_counter.sdpa_backward_flop_count(gradient, query, key, value)


FLOP_FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""For `FlopCounterMode(custom_mapping=…)`: torch 2.13 counts the attention of GPUs only."""

_FORMULAS = {
    **flop_counter.flop_registry,
    **{op: flop_counter.shape_wrapper(formula) for op, formula in FLOP_FORMULAS.items()},
}
_CONVOLUTIONS = {aten.convolution: 1, aten.convolution_backward: 2}
"""How many of its first arguments a CPU copies to a layout of its own, as measured."""


class Operation(NamedTuple):
    """One operation of torch: multiplications and additions of products, bytes read and written.

    precision: "bfloat16", "float32", or "tf32" for a convolution of float32, which torch does in
        TF32 on a device with units for it.
    """

    flops: int
    bytes: int
    precision: str


@dataclass(frozen=True)
class Footprint:
    """A training step of `batch` examples on one device: what it computes, and bytes it needs.

    forward, backward: of the batch. update: of the optimisers and the average, for all weights.
    end_passes: forward passes a step, on average, that measure the schedule's end points.
    parameters: count. weights, optimizer, average: bytes from the first step to the last; the
        averages are one, or three with those of `posthoc`.
    gradients: bytes, at the end of backward.
    kept: bytes that forward leaves for backward. peak: most bytes at one time in forward and
        backward, gradients included; `peak_without_gradients`: the same without them.
    update_peak: most bytes at one time in the update, gradients included.
    """

    batch: int
    forward: tuple[Operation, ...]
    backward: tuple[Operation, ...]
    update: tuple[Operation, ...]
    end_passes: float
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    kept: int
    peak: int
    peak_without_gradients: int
    update_peak: int

    @property
    def forward_flops(self) -> float:
        """Operations of one pass for one example, as sampling and evaluating need them."""
        return _flops(self.forward) / self.batch

    @property
    def training_flops(self) -> float:
        """Operations of a training step by examples, the update of the weights included."""
        passes = self.end_passes * _flops(self.forward) + _flops(self.forward + self.backward)
        return (passes + _flops(self.update)) / self.batch


def footprint(
    model: ModelConfig,
    training: TrainingConfig,
    batch: int,
    *,
    precision: str = "float32",
    checkpointing: bool = False,
    on_cpu: bool = True,
) -> Footprint:
    """Count a training step of `batch` examples, in a second or two and without its memory.

    The network's pass, the diffusion loss, the backward pass and the update run on fake tensors.
    Prior and reconstruction, which no network's output passes through, are left out.

    precision: of the network's products, "float32" or "bfloat16".
    checkpointing: whether the activations inside the blocks are computed again in backward.
    on_cpu: for a CPU, whose convolutions need copies of their operands in a layout of their own;
        otherwise for a GPU, where autocast normalises in float32.
    """
    # The decoder has no weights, and some look at the values of their arguments.
    stand_in = Component(name="discretized", options={"levels": 2})
    with FakeTensorMode():
        vdm = build(model.model_copy(update={"decoder": stand_in})).train()
        vdm = vdm.in_precision(torch.bfloat16 if precision == "bfloat16" else None)
        if not on_cpu and precision == "bfloat16":
            _normalise_in_float32(vdm.network)
        if checkpointing:
            recompute_activations(vdm.network)
        optimizers = make_optimizers(vdm, training)
        recorder = _Recorder(scratch=on_cpu)
        with recorder:
            loss = _loss(vdm, batch)
            forward, kept = recorder.take(), recorder.live
            for parameter in filter(lambda p: p.requires_grad, vdm.parameters()):
                parameter.register_post_accumulate_grad_hook(recorder.set_gradient_apart)
            loss.backward()
            del loss
            peak, without = recorder.peak, recorder.peak_apart
            backward = recorder.take()
            for _ in range(2):  # the first makes the states
                recorder.take()
                for optimizer in optimizers.values():
                    optimizer.step()
        states = _bytes(
            value
            for optimizer in optimizers.values()
            for state in optimizer.state.values()
            for value in state.values()
        )
        update_peak = recorder.peak - states
        update = recorder.take()
        weights = _bytes(vdm.parameters())
        gradients = _bytes(p.grad for p in vdm.parameters())
        alone = _Recorder(scratch=on_cpu)
        with torch.no_grad(), alone:
            _loss(vdm, batch)
    averages = weights * (1 + (len(WIDTHS) if training.posthoc_ema else 0))
    average = Operation(flops=0, bytes=3 * averages, precision="float32")
    learned = vdm.schedule.log_stretch.requires_grad
    if learned:  # its end points are measured while what forward keeps is there
        peak, without = (max(p, kept + alone.peak) for p in (peak, without))
    return Footprint(
        batch=batch,
        forward=forward,
        backward=backward,
        update=(*update, average),
        end_passes=2 / CALLS_PER_MEASUREMENT if learned else 0.0,
        parameters=sum(p.numel() for p in vdm.parameters()),
        weights=weights,
        gradients=gradients,
        optimizer=states,
        average=averages,
        kept=kept,
        peak=peak,
        peak_without_gradients=without,
        update_peak=update_peak,
    )


def _loss(vdm: VDM, batch: int) -> Tensor:
    """Return the mean of the diffusion loss: all of a step that passes through the network."""
    x, noise = torch.empty(batch, *vdm.shape), torch.empty(batch, *vdm.shape)
    shape = [p for name, p in vdm.schedule.named_parameters() if name != "log_stretch"]
    gamma = torch.empty(batch, requires_grad=any(p.requires_grad for p in shape))
    return objective.noise_error(lambda z, g: vdm.denoise(z, g).noise, x, gamma, noise).mean()


def _normalise_in_float32(network: nn.Module) -> None:
    """Do as CUDA's autocast does, which a CPU's does not."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))


class _Recorder(TorchDispatchMode):
    """Lists operations, and follows how many bytes of new tensors are alive.

    torch.distributed's MemTracker does the second and is not public. scratch: see `footprint`.
    """

    def __init__(self, *, scratch: bool) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.apart = 0
        self.peak_apart = 0
        self._scratch = scratch
        self._operations: list[Operation] = []
        self._sizes: dict[int, int] = {}

    def take(self) -> tuple[Operation, ...]:
        """Return the operations since the last call, and begin with a new list and a new peak."""
        taken, self._operations = tuple(self._operations), []
        self.peak = self.peak_apart = 0
        self._grow(0)
        return taken

    def set_gradient_apart(self, parameter: Tensor) -> None:
        """Leave a finished gradient out of `peak_apart`."""
        assert parameter.grad is not None
        self.apart += parameter.grad.untyped_storage().nbytes()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != "aten" or func.is_view or func is aten._unsafe_view.default:
            return result
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        for tensor in outputs:
            self._follow(tensor.untyped_storage())
        packet = func.overloadpacket
        formula: Callable[..., int] | None = _FORMULAS.get(packet)
        distinct = {id(t): t for t in (*inputs, *outputs)}.values()
        moved = sum(t.numel() * t.itemsize for t in distinct)
        if self._scratch and packet in _CONVOLUTIONS:
            self._grow(sum(t.nbytes for t in args[: _CONVOLUTIONS[packet]]))
        self._operations.append(
            Operation(
                flops=0 if formula is None else formula(*args, **kwargs, out_val=result),
                bytes=moved,
                precision="bfloat16"
                if any(t.dtype == torch.bfloat16 for t in outputs)
                else "tf32"
                if packet in _CONVOLUTIONS
                else "float32",
            )
        )
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self._grow(0)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def _grow(self, scratch: int) -> None:
        self.peak = max(self.peak, self.live + scratch)
        self.peak_apart = max(self.peak_apart, self.live - self.apart + scratch)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(values: Iterable[object]) -> int:
    return sum(v.nbytes for v in values if isinstance(v, Tensor))


def _flops(operations: Iterable[Operation]) -> int:
    return sum(operation.flops for operation in operations)
