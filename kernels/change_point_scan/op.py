"""The change-point scan as a custom op: what torch.compile, torch.export and autograd see of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..compiled import array, check_lengths, core, gpu_module, register_op, resolve
from .check import mismatch
from .linear_backward import scan_linear_backward
from .reference import scan_reference
from .reference_backward import scan_reference_backward
from .types import ScanOutput, ScanRules, ScanStreams, ScanWeights, empty_output

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
SCAN = "change_point_scan"
N_TENSORS = len(ScanStreams._fields) + len(ScanWeights._fields)  # the first inputs: those with gradients


def scan_op(
    streams: ScanStreams,
    weights: ScanWeights,
    rules: ScanRules,
    noise: Tensor | None,
    lengths: Tensor,
    forced_changes: Tensor | None,
    backend: str,
    precision: str,
) -> ScanOutput:
    """`change_point_scan` through the op; arguments as checked there."""
    tensors = (None if tensor is None else tensor.contiguous() for tensor in (*streams, *weights, noise))
    forced = None if forced_changes is None else forced_changes.contiguous()
    *floats, change_points = _scan(*tensors, lengths.contiguous(), forced, *_flat(rules), backend, precision)
    return ScanOutput(change_points, *floats)


def _floats_first(output: ScanOutput) -> Outputs:
    """The op's order: opcheck adds the outputs up into the first, which must not be the boolean one."""
    return (*output[1:], output.change_points)


def _flat(rules: ScanRules) -> tuple[Any, ...]:
    return (*rules._replace(alpha_down=rules.down)[:-1], *rules.beta_range)


def _rules(flat: tuple[Any, ...]) -> ScanRules:
    return ScanRules._make((*flat[:-2], (flat[-2], flat[-1])))


def _run(
    start: Tensor,
    prior: Tensor | None,
    posterior: Tensor | None,
    gru_input: Tensor,
    gru_state: Tensor,
    gru_input_bias: Tensor,
    gru_state_bias: Tensor,
    prior_state: Tensor | None,
    prior_bias: Tensor | None,
    posterior_state: Tensor | None,
    initial_state: Tensor,
    noise: Tensor | None,
    lengths: Tensor,
    forced_changes: Tensor | None,
    static_belief: str,
    change_prior: str,
    evidence: str,
    belief_weight: float,
    evidence_weight: float,
    refractory: int,
    reset: bool,
    alpha: float,
    alpha_down: float,
    beta0: float,
    beta_low: float,
    beta_high: float,
    backend: str,
    precision: str,
) -> Outputs:
    flat = (static_belief, change_prior, evidence, belief_weight, evidence_weight, refractory, reset)
    rules = _rules((*flat, alpha, alpha_down, beta0, beta_low, beta_high))
    streams = ScanStreams(start, prior, posterior)
    state_weights = (prior_state, prior_bias, posterior_state)
    weights = ScanWeights(gru_input, gru_state, gru_input_bias, gru_state_bias, *state_weights, initial_state)
    check_lengths(lengths, start.shape[1])
    kernel = _kernel(backend, precision, rules, start, initial_state, forced_changes is not None)
    if kernel == "reference":
        return _floats_first(scan_reference(streams, weights, rules, noise, lengths, forced_changes))
    if kernel != "cpu":
        forward = gpu_module(kernel, SCAN).forward
        return _floats_first(forward(streams, weights, rules, noise, lengths, forced_changes, precision))
    output = empty_output(start, initial_state)
    core.change_point_scan(
        [array(tensor) for tensor in (*streams, *weights, noise, lengths, forced_changes)],
        rules._asdict(),
        [array(tensor) for tensor in output],
        torch.get_num_threads(),
    )
    return _floats_first(output)


def _kernel(
    backend: str, precision: str, rules: ScanRules, start: Tensor, initial_state: Tensor, forced: bool = False
) -> str:
    """The implementation of one call; backward there are no kernels of forced change-points."""
    latent, state = start.shape[2] // 2, initial_state.shape[0]
    subject = f"{SCAN} {'-'.join(rules[:3])} reset={rules.reset} Z={latent} H={state} {precision}"

    def differs(kernel: str) -> str | None:
        return mismatch(gpu_module(kernel, SCAN), rules, latent, state, precision, start.device, forced)

    return resolve(backend, start, state, subject + forced * " forced", differs)


def _fake(*inputs: Any) -> Outputs:
    return _floats_first(empty_output(inputs[0], inputs[N_TENSORS - 1]))


def _run_backward(
    gradients: list[Tensor],
    outputs: list[Tensor],
    inputs: list[Tensor | None],
    noise: Tensor | None,
    lengths: Tensor,
    static_belief: str,
    change_prior: str,
    evidence: str,
    belief_weight: float,
    evidence_weight: float,
    reset: bool,
    backend: str,
    precision: str,
) -> list[Tensor]:
    rules = ScanRules(static_belief, change_prior, evidence, belief_weight, evidence_weight, reset=reset)  # type: ignore[arg-type]
    streams, weights = ScanStreams._make(inputs[:3]), ScanWeights._make(inputs[3:])
    output = ScanOutput._make((outputs[-1], *outputs[:-1]))
    kernel = _kernel(backend, precision, rules, streams.start, weights.initial_state)
    if kernel != "cpu":
        arguments = (ScanOutput(output.change_points, *gradients), output, streams, weights, rules, noise, lengths)
        if kernel == "reference":
            results = scan_reference_backward(*arguments)
        else:
            results = scan_linear_backward(gpu_module(kernel, SCAN).solver(precision), *arguments)
        return [tensor for group in results for tensor in group if tensor is not None]
    found = [None if tensor is None else torch.empty_like(tensor) for tensor in inputs]
    core.change_point_scan_backward(
        [array(tensor) for tensor in (*inputs, noise, lengths, None)],
        rules._asdict(),
        [array(tensor) for tensor in output],
        [array(tensor) for tensor in gradients],
        [array(tensor) for tensor in found],
        torch.get_num_threads(),
    )
    return [tensor for tensor in found if tensor is not None]


def _fake_backward(
    gradients: list[Tensor], outputs: list[Tensor], inputs: list[Tensor | None], *_rest: Any
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in inputs if tensor is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.rules, ctx.kernel = _rules(inputs[N_TENSORS + 3 : -2]), inputs[-2:]
    ctx.save_for_backward(*inputs[: N_TENSORS + 2], *output)  # forced_changes show in the change-points
    ctx.mark_non_differentiable(output[-1])


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    inputs = list(ctx.saved_tensors[:N_TENSORS])
    noise, lengths, *outputs = ctx.saved_tensors[N_TENSORS:]
    rules: ScanRules = ctx.rules
    reading = (*rules[:3], rules.belief_weight, rules.evidence_weight, rules.reset)
    contiguous = [gradient.contiguous() for gradient in gradients[:-1]]
    found = iter(_scan_backward(contiguous, outputs, inputs, noise, lengths, *reading, *ctx.kernel))
    n_rest = 3 + len(ScanRules._fields) + 1 + 2  # noise, lengths, forced_changes, the rules laid flat, the kernel
    return (*(None if tensor is None else next(found) for tensor in inputs), *[None] * n_rest)


_scan = register_op(SCAN, _run, _fake)
_scan_backward = register_op(f"{SCAN}_backward", _run_backward, _fake_backward)
torch.library.register_autograd(f"ahlm::{SCAN}", _backward, setup_context=_setup_context)
