"""Cycles a step of the fp16 CUDA forward takes by its machine code; no card is needed, and none has confirmed it.

The compiler writes into every instruction how long the warp then stalls and which earlier ones it waits for. Each of
the kernel's two loops (state, beliefs) is gone through once in that order, which gives the cycles between what it
waits for and what it sends; then the loops run against each other until a step takes as long as the last. What other
warps of the same scheduler take is not counted, nor what memory and mailboxes take beyond these latencies.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import NamedTuple

# cycles until a result is there: published for Hopper, or typical; 15 where nothing is named
LATENCIES = {"LDG": 500, "MUFU": 40, "LDSM": 33, "SYNCS": 30, "LDC": 30, "LDS": 29, "SHFL": 24, "S2": 20, "VOTE": 12}
HOP = 220  # a message from block to block
STEPS = 64


class Instruction(NamedTuple):
    """One line of the listing: `stall` cycles, barriers set on writing and on reading (7: none), mask to wait for."""

    address: int
    text: str
    stall: int
    on_write: int
    on_read: int
    waits: int

    @property
    def name(self) -> str:
        """The operation, without its predicate."""
        return self.text.split()[self.text.startswith("@")]

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"BRA.* 0x([0-9a-f]+)$", self.text)
        return int(found[1], 16) if found else None


class Event(NamedTuple):
    """What a loop does for other warps `cycles` after its last event."""

    cycles: int
    waits: bool
    box: str


def listing(binary: Path, function: str) -> list[Instruction] | None:
    """The instructions of the function whose mangled name holds this; none where there is no disassembler."""
    tool = which("cuobjdump")
    if tool is None:
        try:
            import triton
        except ImportError:
            return None
        tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    text = subprocess.run([tool, "-sass", str(binary)], check=True, capture_output=True, text=True).stdout
    body = next(part for part in text.split("Function : ")[1:] if function in part.split("\n", 1)[0])
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?) *;\s+/\* 0x[0-9a-f]+ \*/\s+/\* 0x([0-9a-f]+) \*/", body)
    found = []
    for address, instruction, control in lines:
        bits = int(control, 16) >> 41
        fields = (bits & 15, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)
        found.append(Instruction(int(address, 16), instruction, *fields))
    return found


def decision_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The loops that take a decision: first the beliefs', then the state's."""
    loops: list[list[Instruction]] = []
    for i, last in enumerate(code):
        if last.target is None or last.target >= last.address or any("TRYWAIT" in one.text for one in code[i - 4 : i]):
            continue  # not a loop, or one that only asks again whether a message is there
        body = [one for one in code[: i + 1] if one.address >= last.target]
        if any(one.name.startswith("VOTE") for one in body):
            loops.append(body)
    # what the compiler put aside and jumps back from looks like a loop around all that lies between
    return [one for one in loops if not any(len(other) < len(one) and set(other) & set(one) for other in loops)]


def events(body: list[Instruction], waits: tuple[str, ...], sends: tuple[str, ...]) -> tuple[list[Event], int]:
    """A loop's waits and sends, named in order (the last instruction that sends counts), and its cycles in all."""
    now, ready = 0, [0] * 8
    found: list[tuple[int, bool]] = []
    for one in body:
        now = max([now, *(ready[i] for i in range(6) if one.waits >> i & 1)])
        latency = next((cycles for name, cycles in LATENCIES.items() if one.name.startswith(name)), 15)
        if one.on_write < 6:
            ready[one.on_write] = max(ready[one.on_write], now + latency)
        if one.on_read < 6:
            ready[one.on_read] = max(ready[one.on_read], now + min(latency, 20))
        if "TRYWAIT" in one.text or one.name.startswith("STAS"):
            found.append((now, "TRYWAIT" in one.text))
        now += max(one.stall, 1)
    # messages of one kind follow each other closely
    kept = [
        (cycle, waits_here)
        for (cycle, waits_here), after in zip(found, [*found[1:], (2 * now, True)], strict=True)
        if waits_here or after[1] or after[0] - cycle > 60
    ]
    named = {True: iter(waits), False: iter(sends)}
    result, last = [], 0
    for cycle, waits_here in kept:
        result.append(Event(cycle - last, waits_here, next(named[waits_here])))
        last = cycle
    assert all(next(names, None) is None for names in named.values()), "the kernel sends or waits otherwise"
    return result, now - last


def cycles_a_step(binary: Path, function: str) -> int | None:
    """Cycles of a step once all have settled; none where there is no disassembler."""
    code = listing(binary, function)
    if code is None:
        return None
    beliefs, state = decision_loops(code)
    loops = {
        "beliefs": events(beliefs, ("state", "kl"), ("latents", "kl")),
        "state": events(state, ("latents", "kl", "state"), ("state",)),
    }
    arrived = {("latents", 0): 0, ("kl", 0): 0}
    ends: dict[str, list[int]] = {name: [] for name in loops}

    def run(name: str) -> Iterator[None]:
        now, (inside, rest) = 0, loops[name]
        # beliefs begin with column 1 and then need the state of column 0
        for step in range(1 if name == "beliefs" else 0, STEPS):
            for event in inside:
                now += event.cycles
                key = (event.box, step - 1 if name == "beliefs" and event.box == "state" else step)
                if not event.waits:
                    arrived[key] = now + HOP
                while event.waits and key not in arrived:
                    yield
                now = max(now, arrived[key]) if event.waits else now
            now += rest
            ends[name].append(now)

    running = [run(name) for name in loops]
    while min(map(len, ends.values())) < STEPS - 1:
        for one in running:
            next(one, None)
    last = ends["beliefs"]
    return last[-1] - last[-2]
