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
        # Hosted machines often hide the model's name; family and model number still say which generation it is.
        pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        found = {}
        for key, _, value in pairs:
            found.setdefault(key.strip(), value.strip())
        model = found.get("model name", model)
        if "cpu family" in found:
            model += f" (family {found['cpu family']}, model {found.get('model', '?')})"
    return {"cpu": model, "cores": cores(), "threads": threads, "system": platform.platform()}
