"""What the results of a benchmark say of the machine."""

import os
import platform
from pathlib import Path


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(threads):
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), model)
    return {"cpu": model, "cores": cores(), "threads": threads, "system": platform.platform()}
