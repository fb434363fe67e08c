"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Cores, processor, its instructions that matter here, and the load before the measurement."""
    return {"cpus": os.cpu_count(), "processor": processor(), "instructions": instructions(), "load_before": round(os.getloadavg()[0], 2)}


def processor() -> str:
    return (_cpuinfo("model name") or platform.processor() or platform.machine()).strip()


def instructions() -> list[str]:
    flags = _cpuinfo("flags").split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]


def _cpuinfo(name: str) -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(rf"^{name}\s*:(.*)$", file.read_text(), re.MULTILINE) if file.is_file() else None
    return found[1] if found else ""
