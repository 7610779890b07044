"""How much memory there is, and one line where something does not fit into it: what, about how much, what to lower.

Only what cannot fit is refused, before it is asked for; what an allocator refuses later, `saelab.cli` says. Leaves out
how much is in use: an estimate that looks at that would change from one try to the next.
"""

import os
import resource
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup/memory.max")


def limit(device: torch.device) -> int | None:
    """Bytes that a process can have at most on a device; None where that cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = [resource.getrlimit(resource.RLIMIT_AS)[0]]
    found += [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    text = CGROUP.read_text().strip() if CGROUP.is_file() else ""
    found += [int(text)] if text.isdigit() else []
    return min((one for one in found if one > 0), default=None)


def check_fits(least: int, about: int, device: torch.device, what: str, lower: str) -> None:
    """Refuse what cannot fit.

    Args:
        least: bytes that it takes however it is done; it is refused only if these are too many.
        about: bytes that it is likely to take.
        device: where.
        what: is asked for, with its size.
        lower: the option to lower.

    Raises:
        ValueError: that names all of them.
    """
    most = limit(device)
    if most is not None and least > most:
        raise ValueError(
            f"not enough memory: {what} needs about {size(about)}, there are {size(most)} for it; lower {lower}"
        )


def size(count: float) -> str:
    """Bytes as 1.5 GB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.3g} {name}" if count < 1000 * unit else f"{count / unit:,.0f} {name}"
    return f"{count:,.0f} bytes"
