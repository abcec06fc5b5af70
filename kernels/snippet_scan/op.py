"""The snippet scan as a custom op: what torch.compile, torch.export and autograd see of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..compiled import array, check_lengths, core, gpu_module, register_op, resolve
from .check import mismatch
from .linear_backward import snippet_linear_backward
from .reference import snippet_scan_reference
from .reference_backward import snippet_scan_reference_backward
from .types import SnippetOutput, SnippetWeights

SCAN = "snippet_scan"
N_TENSORS = 2 + len(SnippetWeights._fields)  # the first inputs: those with gradients


def snippet_scan_op(
    prior_stream: Tensor,
    posterior_stream: Tensor,
    weights: SnippetWeights,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
    backend: str,
    precision: str,
) -> SnippetOutput:
    """`snippet_scan` through the op; arguments as checked there."""
    tensors = (prior_stream, posterior_stream, *weights, noise, change_points, lengths)
    return SnippetOutput(*_scan(*(tensor.contiguous() for tensor in tensors), backend, precision))


def _run(
    prior_stream: Tensor,
    posterior_stream: Tensor,
    gru_input: Tensor,
    gru_state: Tensor,
    gru_input_bias: Tensor,
    gru_state_bias: Tensor,
    prior_state: Tensor,
    posterior_state: Tensor,
    initial_state: Tensor,
    noise: Tensor,
    change_points: Tensor,
    lengths: Tensor,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    gru = (gru_input, gru_state, gru_input_bias, gru_state_bias)
    weights = SnippetWeights(*gru, prior_state, posterior_state, initial_state)
    check_lengths(lengths, prior_stream.shape[1])
    kernel = _kernel(backend, precision, prior_stream, initial_state)
    arguments = (prior_stream, posterior_stream, weights, noise, change_points, lengths)
    if kernel == "reference":
        return snippet_scan_reference(*arguments)
    if kernel != "cpu":
        found: SnippetOutput = gpu_module(kernel, SCAN).forward(*arguments, precision)
        return found
    output = _empty(prior_stream, initial_state)
    inputs = (prior_stream, posterior_stream, *weights, noise, change_points, lengths)
    core.snippet_scan([array(t) for t in inputs], [array(t) for t in output], torch.get_num_threads())
    return output


def _kernel(backend: str, precision: str, stream: Tensor, initial_state: Tensor) -> str:
    """The implementation of one call, the same forward and backward."""
    latent, state = stream.shape[2] // 2, initial_state.shape[0]

    def differs(kernel: str) -> str | None:
        return mismatch(gpu_module(kernel, SCAN), latent, state, precision, stream.device)

    return resolve(backend, stream, state, f"{SCAN} Z={latent} H={state} {precision}", differs)


def _empty(stream: Tensor, initial_state: Tensor) -> SnippetOutput:
    batch, n_snippets, z2 = stream.shape
    sizes = ((), (z2 // 2,), (initial_state.shape[0],))
    return SnippetOutput(*(stream.new_empty(batch, n_snippets, *size) for size in sizes))


def _fake(*inputs: Any) -> SnippetOutput:
    return _empty(inputs[0], inputs[N_TENSORS - 1])


def _run_backward(
    gradients: list[Tensor], outputs: list[Tensor], inputs: list[Tensor], backend: str, precision: str
) -> list[Tensor]:
    prior_stream, posterior_stream = inputs[:2]
    weights = SnippetWeights(*inputs[2:N_TENSORS])
    kernel = _kernel(backend, precision, prior_stream, weights.initial_state)
    if kernel != "cpu":
        noise, change_points, lengths = inputs[N_TENSORS:]
        given = (SnippetOutput(*gradients), SnippetOutput(*outputs), prior_stream, posterior_stream, weights)
        arguments = (*given, noise, change_points, lengths)
        if kernel == "reference":
            results = snippet_scan_reference_backward(*arguments)
        else:
            results = snippet_linear_backward(gpu_module(kernel, SCAN).solver(precision), *arguments)
        return [*results[:2], *results[2]]
    found = [torch.empty_like(tensor) for tensor in inputs[:N_TENSORS]]
    groups = ([array(tensor) for tensor in group] for group in (inputs, outputs, gradients, found))
    core.snippet_scan_backward(*groups, torch.get_num_threads())
    return found


def _fake_backward(
    gradients: list[Tensor], outputs: list[Tensor], inputs: list[Tensor], backend: str, precision: str
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in inputs[:N_TENSORS]]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.kernel = inputs[-2:]
    ctx.save_for_backward(*inputs[:-2], *output)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    n_outputs = len(SnippetOutput._fields)
    inputs, outputs = list(ctx.saved_tensors[:-n_outputs]), list(ctx.saved_tensors[-n_outputs:])
    found = _scan_backward([gradient.contiguous() for gradient in gradients], outputs, inputs, *ctx.kernel)
    return (*found, *[None] * 5)  # noise, change-points, lengths, the kernel


_scan = register_op(SCAN, _run, _fake)
_scan_backward = register_op(f"{SCAN}_backward", _run_backward, _fake_backward)
torch.library.register_autograd(f"ahlm::{SCAN}", _backward, setup_context=_setup_context)
