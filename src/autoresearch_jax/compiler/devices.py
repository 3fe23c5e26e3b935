"""Describes devices to compile for, on a machine that has none of them."""

import os
from typing import Any

import jax
from jax.experimental import topologies

from autoresearch_jax.system.device_specs import TARGETS, Gpu, Target, Tpu

GPU_TEXT = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_bytes}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {cache_bytes}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory_bytes:.0f}
  shared_memory_per_block_optin: {shared_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{kind}"
"""


def devices(name: str, count: int) -> list[Any]:
    """Returns `count` devices of a target, which can only be compiled for.

    Call it once a process, before anything else opens JAX's devices.
    """
    target = TARGETS[name]
    jax.config.update("jax_platforms", "cpu")
    # Compiling without devices does not use the persistent cache, but warns about its entries.
    jax.config.update("jax_enable_compilation_cache", False)
    if isinstance(target.chip, Tpu):
        topology, accelerator = target.chip.slice_of(count)
        os.environ |= {
            "TPU_ACCELERATOR_TYPE": accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a training may use the chips meanwhile
        }
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    else:
        # Without a device nothing can be timed, so XLA uses its default kernels.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()
        found = topologies.get_topology_desc(
            platform="cuda",
            target_config=gpu_text(target, target.chip),
            topology=f"1x1x{count}",
        )
    if len(found.devices) < count:
        raise ValueError(f"a slice has at most {len(found.devices)} of {name} here, not {count}")
    return list(found.devices)[:count]


def gpu_text(target: Target, chip: Gpu) -> str:
    """Returns a GPU as XLA's GpuTargetConfigProto, in protobuf's text format."""
    major, minor = chip.capability
    return GPU_TEXT.format(
        kind=f"NVIDIA {target.kind}",
        shared_bytes=chip.shared_bytes,
        shared_block=chip.shared_bytes - (1024 if major >= 8 else 0),  # the driver keeps 1 KiB
        threads=chip.threads,
        cores=chip.cores,
        fpus=64 if chip.capability <= (8, 0) else 128,
        bandwidth=target.bandwidth,
        cache_bytes=chip.cache_bytes,
        clock_ghz=chip.clock_ghz,
        memory_bytes=target.memory_gib * 2**30,
        major=major,
        minor=minor,
    )
