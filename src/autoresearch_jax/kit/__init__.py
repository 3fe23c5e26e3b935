"""Functions for every `train.py`, to be called and not changed: kernels, loss, devices, progress.

The package imports JAX, so the harness never imports it. For an agent's prompt it reads the
signatures and docstrings of the functions below from the source text.
"""

import importlib.util
import os


def _avoid_slow_scatter() -> None:
    """Prevent compare-and-swap loops for float32 scatter-adds on CUDA.

    jaxlib 0.10.2 and 0.11.0 generate them (openxla/xla#46225), and embedding gradients are then
    hundreds of times slower. This must run before JAX initializes the device.
    """
    flag = "--xla_backend_extra_options=-nvptx-allow-ftz-atomics"
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    flags = os.environ.get("XLA_FLAGS", "")
    if any(map(importlib.util.find_spec, plugins)) and "xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


_avoid_slow_scatter()

from autoresearch_jax.kit.attention import attention as attention  # noqa: E402
from autoresearch_jax.kit.devices import compile_step as compile_step  # noqa: E402
from autoresearch_jax.kit.devices import describe as describe  # noqa: E402
from autoresearch_jax.kit.devices import (  # noqa: E402
    initialize_distributed as initialize_distributed,
)
from autoresearch_jax.kit.devices import peak_memory_mb as peak_memory_mb  # noqa: E402
from autoresearch_jax.kit.devices import platform as platform  # noqa: E402
from autoresearch_jax.kit.devices import same_on_all_processes as same_on_all_processes  # noqa: E402
from autoresearch_jax.kit.devices import supported as supported  # noqa: E402
from autoresearch_jax.kit.elementwise import look_up as look_up  # noqa: E402
from autoresearch_jax.kit.elementwise import residual_and_norm as residual_and_norm  # noqa: E402
from autoresearch_jax.kit.elementwise import rms_norm as rms_norm  # noqa: E402
from autoresearch_jax.kit.elementwise import (  # noqa: E402
    rotate_and_normalize as rotate_and_normalize,
)
from autoresearch_jax.kit.elementwise import split_heads as split_heads  # noqa: E402
from autoresearch_jax.kit.elementwise import squared_relu as squared_relu  # noqa: E402
from autoresearch_jax.kit.fused_mlp import mlp as mlp  # noqa: E402
from autoresearch_jax.kit.loss import cross_entropy as cross_entropy  # noqa: E402
from autoresearch_jax.kit.loss import logits as logits  # noqa: E402
from autoresearch_jax.kit.loss import softcap as softcap  # noqa: E402
from autoresearch_jax.kit.progress import ProgressLine as ProgressLine  # noqa: E402
from autoresearch_jax.system.device_specs import peak_flops as peak_flops  # noqa: E402
