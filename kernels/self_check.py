"""A GPU kernel is trusted on a card once it has agreed with the reference there; the verdict is kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import cuda

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# errors allowed, in units of each result's largest value; in the interpreter kernels are 50 times better
TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}

UNFINISHED = "a check did not come to an end"
UNFINISHED_AGAIN = "two checks did not come to an end, or still go on"

_verdicts: dict[tuple[str, str, str], bool] = {}
_one_thread = threading.RLock()


def cache_folder() -> Path:
    """Where verdicts are kept: under AHLM_CACHE, XDG_CACHE_HOME or ~/.cache, or with temporary files."""
    cache = os.environ.get("AHLM_CACHE") or os.environ.get("XDG_CACHE_HOME")
    if not cache:
        try:
            cache = str(Path.home() / ".cache")
        except RuntimeError:  # a user without a home, as in some containers
            cache = tempfile.gettempdir()
    return Path(cache) / "ahlm" / "self_check"


def is_trusted(kernel: str, subject: str, device: torch.device, mismatch: Callable[[], str | None]) -> bool:
    """Whether a kernel may run; the first use on a device tries it.

    Args:
        kernel: its name, `triton` or `cuda`.
        subject: what is compiled for the call.
        device: where it runs.
        mismatch: runs the kernel beside the reference and says how they differ; none: they agree.

    A kernel that differs, that leaves the device unusable, or whose check twice did not come to an end, is refused with
    one warning, and again in every later process until something of the verdict's facts changes. Any other error is
    refused in this process alone.
    """
    here = (kernel, subject, str(device))
    with _one_thread:
        if here not in _verdicts:
            reason = _reason(kernel, subject, device, mismatch)
            _verdicts[here] = not reason
            if reason:
                message = f"the {kernel} kernel is off on {device} ({subject}): {reason}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        return _verdicts[here]


def _reason(kernel: str, subject: str, device: torch.device, mismatch: Callable[[], str | None]) -> str:
    """Why a kernel is refused, from disk or by trying it; empty: it is not."""
    known = facts(kernel, subject, device)
    path = cache_folder() / (hashlib.sha256(json.dumps(known).encode()).hexdigest() + ".json")
    with _one_process(path):
        kept = _kept(path, known)
        if kept not in (None, UNFINISHED):
            return kept and f"{kept} (delete {path} to try again)"
        # once may be a job's time limit; a kernel that takes a second process with it is refused in the third
        _keep(path, {"facts": known, "reason": UNFINISHED if kept is None else UNFINISHED_AGAIN})
        try:
            reason = mismatch() or ""
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if _answers(device):  # no memory or no compiler, perhaps: the next process may have them
                _forget(path)
                return reason
        except BaseException:  # Ctrl-C says nothing about the kernel
            _forget(path)
            raise
        _keep(path, {"facts": known, "reason": reason})
        return reason


@contextlib.contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Others wait for the verdict; the lock of a process that died is free, and the verdict it left is read."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without a place for the lock, each checks for itself
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_suffix(".lock").open("w"))
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _answers(device: torch.device) -> bool:
    """Whether a device still works; after an illegal access it does not, for as long as the process lives."""
    try:
        return torch.ones(1, device=device).item() == 1
    except Exception:
        return False


def facts(kernel: str, subject: str, device: torch.device) -> dict[str, Any]:
    """What a verdict holds for: card, driver, versions, switches and the kernels' source."""
    card, driver = "none", "none"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = f"{properties.name} sm_{properties.major}{properties.minor}"
        version = Path("/proc/driver/nvidia/version")
        driver = version.read_text().split("\n")[0] if version.is_file() else "unknown"
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    source = hashlib.sha256()
    library = cuda.installed() if kernel == "cuda" else None
    compiled = [] if library is None else [library.path]
    for file in (*sorted(Path(__file__).parent.rglob("*.py")), *compiled):
        source.update(file.read_bytes())
    return {
        "kernel": kernel,
        "subject": subject,
        "card": card,
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton,
        "interpreter": os.environ.get("TRITON_INTERPRET", "0"),
        "source": source.hexdigest(),
    }


def _kept(path: Path, known: dict[str, Any]) -> str | None:
    """The reason of a verdict on disk; none: there is no verdict, or no file that holds one, of these facts."""
    try:
        verdict = json.loads(path.read_text())
        reason = verdict["reason"]
        return reason if verdict["facts"] == known and isinstance(reason, str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, verdict: dict[str, Any]) -> None:
    """Write a verdict whole or not at all; a cache that cannot be written costs only the next check."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(verdict, file)
        os.replace(file.name, path)
    except OSError:
        pass


def _forget(path: Path) -> None:
    """Take a verdict back, where there is one."""
    with contextlib.suppress(OSError):
        path.unlink()


def difference(names: Iterable[str], found: Iterable[Any], expected: Iterable[Any], precision: str) -> str | None:
    """The worst result of a kernel, in units of its largest value, where that is more than is allowed.

    Args:
        names: of the results.
        found: tensors of the kernel.
        expected: of the reference; none where a result is not asked for.
        precision: of the kernel's products.
    """
    worst, where = 0.0, ""
    for name, one, other in zip(names, found, expected, strict=True):
        if other is not None and other.numel():
            one, other = one.double().cpu(), other.double().cpu()
            error = ((one - other).abs().max() / other.abs().max().clamp(min=1.0)).nan_to_num(torch.inf).item()
            if error > worst:
                worst, where = error, name
    allowed = TOLERANCE[precision]
    return None if worst <= allowed else f"{where} is off by {worst:.2g} of its largest value, {allowed:g} is allowed"
