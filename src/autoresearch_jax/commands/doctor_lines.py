"""The report of `doctor` as lines of text."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoresearch_jax.commands import presets
from autoresearch_jax.common.console import typed


@dataclass(frozen=True)
class Problem:
    """A problem or a note, and what to do about it."""

    problem: str
    command: str  # what to type next


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines of a report, as `doctor.report` returns it."""
    device = "none"
    if found["platform"]:
        device = f"{found['device_count']} x {found['device_kind']} ({found['platform']})"
        device += f", {found['memory_mb'] / 1024:.1f} GiB each, JAX {found['jax_version']}"
    sandbox_why = f" ({found['isolation_why']})" if found["isolation_why"] else ""
    rows = {"device": device}
    rows |= {f"GPU {gpu['index']}": _gpu_words(gpu) for gpu in found["gpus"] or []}
    if found["gpus"] is None:
        rows["memory"] = "unknown: only nvidia-smi reports free memory and clocks"
    if found["platform"] == "cpu":
        rows["memory"] = f"{found['memory_free_mb'] / 1024:.1f} GiB free"
    rows |= {
        "start": _first_step_words(found["first_step"]),
        "python": found["python_version"],
        "uv": "found" if found["uv_ok"] else "missing",
        "data": "ready" if found["data_ready"] else "not prepared",
        "disk": f"{found['disk_free_gb']:.0f} GB free in {found['home']}, "
        f"an overnight run takes up to {found['night_gb']:.1f} GB",
        "sandbox": f"{found['isolation'] or 'unknown'}{sandbox_why}, {found['system_calls']}",
    }
    if found["preset"]:
        preset = presets.PRESETS[found["preset"]]
        why = f". {found['preset_why']}" if found["preset_why"] else ""
        rows["preset"] = f"{preset.name}: {preset.description}{why}"
    if found["search"]:
        rows["search"] = found["search"]
    listed = [f"{name:<8}{words}" for name, words in rows.items()]
    width = max(map(len, found["agents"]), default=0) + 2
    for index, (name, one) in enumerate(found["agents"].items()):
        listed.append(f"{'' if index else 'agents':<8}{name:<{width}}{_agent_words(one)}")
    listed.append("")
    for mark, some in (("- ", found["problems"]), ("Note: ", found["notes"])):
        listed += [f"{mark}{one['problem']}\n  Next: {one['command']}" for one in some]
    agent = f" --agent {shlex.quote(found['agent'])}" if found["agent"] else ""
    ready = typed(f"Ready: autoresearch-jax loop{agent}")
    return [*listed, ready if found["ready"] else "Not ready."]


def _gpu_words(gpu: Mapping[str, Any]) -> str:
    formats = (
        ("{free_gib:.1f} of {memory_gib:.1f} GiB free", ("free_gib", "memory_gib")),
        ("{clock_mhz:,.0f} of {most_mhz:,.0f} MHz", ("clock_mhz", "most_mhz")),
        ("{temperature_c:.0f} °C", ("temperature_c",)),
        ("at most {power_limit_w:.0f} W", ("power_limit_w",)),
    )
    known = [
        form.format(**gpu) for form, names in formats if all(gpu[n] is not None for n in names)
    ]
    return ", ".join([*known, *gpu["slowed"]]) or "its driver reports nothing"


def _first_step_words(first: Mapping[str, Any] | None) -> str:
    if first is None:
        return typed("not measured yet: autoresearch-jax doctor --first-step")
    if first["source"] == "now":
        speed = first["tokens_per_s"]
        then = "" if speed is None else f", then {speed:,.0f} tokens/s"
        return f"{first['seconds']:.1f} s until the first step is done{then}"
    took = f"{first['seconds']:.1f} s until the first step by the baseline of {first['source']}"
    return typed(f"{took}; now: autoresearch-jax doctor --first-step")


def _agent_words(one: Mapping[str, Any]) -> str:
    """Return the state of a client; whether its login works is not tried."""
    if not one["installed"]:
        return f"not installed: {one['install'] or one['program'] + ' is not in PATH'}"
    states = {
        True: "installed; a login or key exists (not tried)",
        False: "installed; there is no login or key",
        None: "installed; its login is unknown",
    }
    state = states[one["logged_in"]]
    return f"{state}: {one['login']}" if one["logged_in"] is False and one["login"] else state
