"""Keep parameters that no device can hold in shares, one on each device.

Each device computes with whole arrays, as if it had all parameters, which it gathers (Zhao et al.,
"PyTorch FSDP", 2023, arXiv:2304.11277, without gradients). XLA decides when it gathers and drops
each array: compiled for a TPU v5e, one after the other (bench/shares.py).
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autoresearch_jax.compiler import memory
from autoresearch_jax.kit.artifacts import addressable
from autoresearch_jax.kit.devices import largest_of_processes

MOST = 0.5  # of a device's memory, for parameters: rows and gathered arrays need the rest


def specs(params: Any, mesh: Mesh) -> Any:
    """Return for each array how it is kept on a mesh of one axis: a pytree of P.

    A device has a copy of each array as long as all fit. If they do not, it has a share of each.
    An array without an axis that the devices divide is copied even then.

    Raises:
        NotEnoughMemory: the shares do not fit either.
    """
    whole = jax.tree.map(lambda _: P(), params)
    device = next(one for one in mesh.devices.flat if one.process_index == jax.process_index())
    limit = memory.device_memory(device)
    if mesh.is_multi_process:  # all must decide the same, also if their memory differs
        own = math.inf if limit is None else limit
        smallest = -largest_of_processes(-own)
        limit = None if math.isinf(smallest) else smallest
    if limit is None or _bytes(params, whole, mesh) <= MOST * limit:
        return whole
    shared = jax.tree.map(lambda leaf: _longest(leaf.shape, mesh), params)
    if (needed := _bytes(params, shared, mesh)) > MOST * limit:
        raise memory.NotEnoughMemory(
            f"the parameters need {memory.size(needed)} on each of {mesh.size} devices, more than "
            f"half of the {memory.size(limit)} that one may use"
        )
    return shared


def _bytes(params: Any, specs: Any, mesh: Mesh) -> int:
    """Return the bytes of a device that arrays need which are kept in this way."""

    def size(leaf: Any, spec: P) -> int:
        shape = NamedSharding(mesh, spec).shard_shape(leaf.shape)
        return int(np.prod(shape)) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, params, specs)))


def _longest(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Return the share along the longest axis that the devices divide; P() without one."""
    fits = [axis for axis, size in enumerate(shape) if size and size % mesh.size == 0]
    if not fits:
        return P()
    axis = max(fits, key=lambda axis: shape[axis])
    return P(*(None for _ in range(axis)), *mesh.axis_names)


def place(params: Any, mesh: Mesh, specs: Any) -> Any:
    """Put arrays on a mesh as `specs` says. With several processes, all of them call it.

    Of a jax.ShapeDtypeStruct it returns one with the sharding.
    """

    def placed(leaf: Any, spec: P) -> Any:
        sharding = NamedSharding(mesh, spec)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(sharding=sharding)
        leaf = addressable(leaf)
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(placed, params, specs)


def gather(params: Any, specs: Any) -> Any:
    """Return whole arrays. Within a shard_map over the mesh of `specs`."""

    def whole(leaf: Any, spec: P) -> Any:
        if not len(spec):
            return leaf
        axis = len(spec) - 1
        return jax.lax.all_gather(leaf, spec[axis], axis=axis, tiled=True)

    return jax.tree.map(whole, params, specs)
