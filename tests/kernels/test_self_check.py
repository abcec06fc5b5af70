"""The check of a kernel against the reference, and the verdict it leaves; the kernels are made of the reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ahlm.kernels import compiled, self_check
from ahlm.kernels.change_point_scan import ScanRules, ScanStreams, ScanWeights, change_point_scan, check, op
from ahlm.kernels.change_point_scan.reference import scan_reference
from ahlm.kernels.recursion import Recursion, Solve
from ahlm.kernels.snippet_scan import check as snippet_check
from ahlm.kernels.snippet_scan.reference import snippet_scan_reference

CPU = torch.device("cpu")
LITERAL = ScanRules("prior", "full", "transition", belief_weight=0.0, evidence_weight=1.0)


def solve(recursion: Recursion) -> tuple[Tensor, Tensor]:
    """The recursion as `Recursion` states it."""
    into_mean, into_log_std, s, share, pull, mean, log_std, rest, inside = recursion.terms().unbind(2)
    gd = recursion.into_state.clone()
    carried, gv, columns = [torch.zeros_like(s[:, 0])] * 2, torch.zeros_like(s[:, 0]), []
    for t in reversed(range(gd.shape[1])):
        to_mean = carried[0] + into_mean[:, t] + gv
        to_log_std = carried[1] + into_log_std[:, t] + gv * s[:, t]
        columns.insert(0, torch.cat([to_mean, to_log_std], dim=-1))
        carried = [mean[:, t] + share[:, t] * to_mean, log_std[:, t] + share[:, t] * to_log_std - pull[:, t] * to_mean]
        if t == 0 or recursion.steps is None:
            continue
        _, reset, update, to_candidate, to_reset, to_update = (part[:, t - 1] for part in recursion.steps)
        to_d, to_next = gd[:, t], recursion.through_state[:, t - 1]
        if recursion.posterior_state is not None:
            e_log_std = inside[:, t] * (rest[:, t] * to_log_std + pull[:, t] * to_mean)
            from_e = torch.cat([rest[:, t] * to_mean, e_log_std], dim=-1) @ recursion.posterior_state
            to_d, to_next = (to_d + from_e, to_next) if recursion.after_restart else (to_d, to_next + from_e)
        to_next = to_next + torch.where(recursion.restarts[:, t - 1, None], 0.0, to_d)
        to_new = to_next * to_candidate
        to_gates = [to_new * to_reset, to_next * to_update]
        gv = torch.cat([*to_gates, to_new], dim=-1) @ recursion.gru_input
        gd[:, t - 1] += to_next * update + torch.cat([*to_gates, to_new * reset], dim=-1) @ recursion.gru_state
    return torch.stack(columns, dim=1), gd


class Kernel:
    """The reference in a kernel's clothes; subclasses are wrong on purpose."""

    def forward(self, *arguments: Any) -> Any:
        return scan_reference(*arguments[:-1])

    def solver(self, _precision: str) -> Solve:
        return solve


class WrongKl(Kernel):
    def forward(self, *arguments: Any) -> Any:
        output = super().forward(*arguments)
        return output._replace(kl_change=output.kl_change * 1.001)


class WrongDecision(Kernel):
    """Consistent with itself, but change-points come from a test of its own."""

    def forward(self, *arguments: Any) -> Any:
        streams = arguments[0].start
        forced = torch.zeros(streams.shape[:2], dtype=torch.bool)
        forced[:, 3] = True
        return scan_reference(*arguments[:5], forced)


class ReadsPadding(Kernel):
    def forward(self, *arguments: Any) -> Any:
        output = super().forward(*arguments)
        return output._replace(latent=torch.where(output.latent == 0, torch.nan, output.latent))


class WrongGradient(Kernel):
    def solver(self, _precision: str) -> Solve:
        return lambda recursion: (solve(recursion)[0], recursion.into_state)


class Crashes(Kernel):
    def forward(self, *arguments: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")


class Snippet(Kernel):
    def forward(self, *arguments: Any) -> Any:
        return snippet_scan_reference(*arguments[:-1])


class WrongSnippet(Snippet):
    def solver(self, _precision: str) -> Solve:
        return lambda recursion: (solve(recursion)[0].flip(1), solve(recursion)[1])


class WrongForMany(Kernel):
    def forward(self, *arguments: Any) -> Any:
        output = super().forward(*arguments)
        return output._replace(latent=output.latent + 1) if len(output.latent) > 30 else output


class WrongWithoutNoise(Kernel):
    def forward(self, *arguments: Any) -> Any:
        output = super().forward(*arguments)
        return output._replace(latent=output.latent + 1) if arguments[3] is None else output


class IgnoresForced(Kernel):
    def forward(self, *arguments: Any) -> Any:
        return scan_reference(*arguments[:5], None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on disk and in memory."""
    monkeypatch.delenv("AHLM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(self_check, "_verdicts", {})
    return tmp_path / "ahlm" / "self_check"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("rules", [ScanRules(), LITERAL, ScanRules(refractory=1, reset=False)])
def test_accepts_the_reference(rules: ScanRules, precision: str) -> None:
    assert check.mismatch(Kernel(), rules, 5, 8, precision, CPU) is None
    assert snippet_check.mismatch(Snippet(), 5, 8, precision, CPU) is None


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (WrongKl(), "kl_change is off by 0.001 of its largest value, 0.0001 is allowed"),
        (WrongDecision(), "change-points contradict eq. 7"),
        (ReadsPadding(), "latent is off by inf"),
        (WrongGradient(), "the gradient of initial_state is off by"),
        (WrongForMany(), "latent is off by"),
        (WrongWithoutNoise(), "latent is off by"),
    ],
)
def test_finds_what_is_wrong(kernel: Kernel, message: str) -> None:
    found = check.mismatch(kernel, ScanRules(), 5, 8, "fp32", CPU)
    assert found is not None
    assert message in found


def test_forced_change_points_are_checked_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.mismatch(Kernel(), ScanRules(), 5, 8, "fp32", CPU, forced=True) is None
    assert check.mismatch(IgnoresForced(), ScanRules(), 5, 8, "fp32", CPU) is None
    found = check.mismatch(IgnoresForced(), ScanRules(), 5, 8, "fp32", CPU, forced=True)
    assert "not those given" in str(found)
    subjects: list[str] = []
    monkeypatch.setattr(op, "resolve", lambda *arguments: subjects.append(arguments[3]) or "reference")
    weights = [torch.zeros(shape) for shape in ((3, 1), (3, 1), (3,), (3,), (2, 1), (2,))]
    for forced in (None, torch.zeros(1, 2, dtype=torch.bool)):
        change_point_scan(
            ScanStreams(torch.zeros(1, 2, 2)), ScanWeights(*weights, None, torch.zeros(1)), forced_changes=forced
        )
    assert subjects[1] == subjects[0] + " forced"


def test_finds_what_is_wrong_with_the_snippet_scan() -> None:
    assert "the gradient of posterior_state is off" in str(snippet_check.mismatch(WrongSnippet(), 5, 8, "fp32", CPU))


def tried(kernel: Kernel, calls: list[str]) -> bool:
    """Whether a kernel is trusted, through the cache; each real check leaves a mark in `calls`."""

    def mismatch() -> str | None:
        calls.append("checked")
        return check.mismatch(kernel, ScanRules(), 4, 6, "fp32", CPU)

    return self_check.is_trusted("triton", "a scan", CPU, mismatch)


def test_a_verdict_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    assert tried(Kernel(), calls)
    assert tried(Kernel(), calls)
    monkeypatch.setattr(self_check, "_verdicts", {})  # the next process
    assert tried(Crashes(), calls)
    assert calls == ["checked"]
    (file,) = cache.glob("*.json")
    assert json.loads(file.read_text())["reason"] == ""
    # another torch, another driver, other source: another verdict
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert tried(Kernel(), calls)
    assert calls == ["checked"] * 2


def test_a_wrong_kernel_is_refused_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    with pytest.warns(RuntimeWarning, match="the triton kernel is off on cpu .a scan.: kl_change is off by"):
        assert not tried(WrongKl(), calls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not tried(WrongKl(), calls)
    monkeypatch.setattr(self_check, "_verdicts", {})
    with pytest.warns(RuntimeWarning, match="delete .*json to try again"):
        assert not tried(Kernel(), calls)
    assert calls == ["checked"]


def test_an_error_is_kept_only_where_the_device_is_lost(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(RuntimeWarning, match="RuntimeError: an illegal memory access"):
        assert not tried(Crashes(), [])
    assert not tried(Kernel(), [])  # in this process
    assert not list(cache.glob("*.json"))
    monkeypatch.setattr(self_check, "_verdicts", {})  # the next one may have more memory
    monkeypatch.setattr(self_check, "_answers", lambda _device: False)
    with pytest.warns(RuntimeWarning, match="RuntimeError: an illegal memory access"):
        assert not tried(Crashes(), [])
    monkeypatch.setattr(self_check, "_verdicts", {})
    with pytest.warns(RuntimeWarning, match="illegal memory access.*to try again"):
        assert not tried(Kernel(), [])


def test_devices_that_answer() -> None:
    assert self_check._answers(CPU)
    assert not self_check._answers(torch.device("cuda", 99))


@pytest.mark.skipif(self_check.fcntl is None, reason="no file locks here")
def test_processes_that_start_together_wait_for_one_verdict(cache: Path, tmp_path: Path) -> None:
    """A check that goes on elsewhere is not one that did not come to an end."""
    code = """
import sys, time, warnings
from pathlib import Path
import torch
from ahlm.kernels import self_check
warnings.simplefilter("error")
mark = Path(sys.argv[1])
def mismatch():
    with mark.open("a") as file:
        file.write("checked ")
    time.sleep(1)
assert self_check.is_trusted("triton", "a scan", torch.device("cpu"), mismatch)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "mark")]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    together = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in together] == [0, 0, 0]
    assert (tmp_path / "mark").read_text() == "checked "


@pytest.mark.parametrize("content", ["", "{", "[]", '{"reason": ""}', '{"facts": {}, "reason": ""}', "\x00\xff"])
def test_a_corrupted_cache_is_checked_again(content: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    assert tried(Kernel(), calls)
    (file,) = cache.glob("*.json")
    file.write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(self_check, "_verdicts", {})
    assert tried(Kernel(), calls)
    assert len(calls) == 2
    assert json.loads(file.read_text())["reason"] == ""


def test_a_check_that_twice_never_ended_is_a_refusal(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung or crashed process must not hang or crash the next one; Ctrl-C is not held against the kernel."""

    def dies() -> str | None:
        raise SystemExit

    with pytest.raises(SystemExit):
        self_check.is_trusted("triton", "a scan", CPU, dies)
    assert not list(cache.glob("*.json"))

    def is_killed() -> str | None:
        (file,) = cache.glob("*.json")
        killed.append(file.read_text())
        return None

    killed: list[str] = []
    assert self_check.is_trusted("triton", "a scan", CPU, is_killed)
    (file,) = cache.glob("*.json")
    file.write_text(killed[0])
    monkeypatch.setattr(self_check, "_verdicts", {})
    # once may have been a time limit
    assert self_check.is_trusted("triton", "a scan", CPU, is_killed)
    file.write_text(killed[1])
    monkeypatch.setattr(self_check, "_verdicts", {})
    with pytest.warns(RuntimeWarning, match="two checks did not come to an end, or still go on"):
        assert not tried(Kernel(), [])


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AHLM_CACHE", str(tmp_path / "file"))
    calls: list[str] = []
    assert tried(Kernel(), calls)
    assert tried(Kernel(), calls)
    assert calls == ["checked"]
    monkeypatch.setattr(self_check, "_verdicts", {})
    with pytest.warns(RuntimeWarning, match="RuntimeError: an illegal memory access"):
        assert not tried(Crashes(), calls)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(self_check.tempfile, "tempdir", str(tmp_path))
    assert tried(Kernel(), [])
    assert list((tmp_path / "ahlm" / "self_check").glob("*.json"))


SWITCHES = """
import sys, torch
from ahlm.kernels.compiled import tf32

def state():
    def older():
        try:
            return torch.get_float32_matmul_precision()
        except RuntimeError:
            return "a mix"
    backends = torch.backends
    return [older(), backends.cuda.matmul.fp32_precision, backends.cudnn.fp32_precision,
            backends.mkldnn.matmul.fp32_precision, backends.fp32_precision]

exec(sys.argv[1])
before = state()
with tf32.off(torch.device("cpu")):
    assert state() == before
# of two scans that overlap, in threads of their own, the last one turns it back
first, second = (tf32.off(torch.device("cuda")) for _ in range(2))
first.__enter__()
second.__enter__()
first.__exit__(None, None, None)
assert not torch.backends.cuda.matmul.allow_tf32
second.__exit__(None, None, None)
assert state() == before, (before, state())
for error in (None, KeyError):
    try:
        with tf32.off(torch.device("cuda")):
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
            if error:
                raise error
    except KeyError:
        pass
    assert state() == before, (before, state())
"""


@pytest.mark.parametrize(
    "switch",
    [
        "",
        "torch.set_float32_matmul_precision('high')",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cudnn.fp32_precision = 'tf32'",
    ],
)
def test_products_are_whole_whatever_the_switches(switch: str) -> None:
    subprocess.run([sys.executable, "-c", SWITCHES, switch], check=True)


@pytest.mark.parametrize(
    ("cuda", "triton", "taken"),
    [(Kernel(), Kernel(), "cuda"), (WrongKl(), Kernel(), "triton"), (Crashes(), WrongGradient(), "reference")],
)
def test_falls_back_in_order(
    cuda: Kernel, triton: Kernel, taken: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """cuda, triton, reference; the answer is right whatever the kernels are, and every bad one is named once."""
    used: list[str] = []

    def module(name: str, _scan: str) -> Any:
        used.append(name)
        return {"cuda": cuda, "triton": triton}[name]

    monkeypatch.setattr(op, "gpu_module", module)
    monkeypatch.setattr(compiled, "candidates", lambda _tensor: ("cuda", "triton"))
    monkeypatch.setattr(compiled.cuda, "supports", lambda *_: True)
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 1), (3, 1), (3,), (3,), (2, 1), (2,))
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    start = torch.randn(2, 6, 2, generator=generator)
    arguments = (ScanStreams(start), ScanWeights(*weights, None, torch.zeros(1)))
    output = change_point_scan(*arguments)
    output.kl_charged.sum().backward()
    expected = change_point_scan(*arguments, backend="reference")
    torch.testing.assert_close(output, expected)
    assert used[-1:] == [taken] if taken != "reference" else len(used) == 2
    n_refused = ("cuda", "triton", "reference").index(taken)
    assert len([w for w in recwarn if "kernel is off" in str(w.message)]) == n_refused
