"""The MLP with its activation inside the products, for NVIDIA's Hopper GPUs. Never run on one yet.

Between the two products of an MLP stand its largest arrays. XLA's product stores the hidden layer,
and another kernel reads it to write its activation; the gradient does likewise. Here the product
itself applies the activation, or its gradient, to the sums that it still has in registers.

The design of the kernel is that of JAX's own `hopper_matmul_mgpu` (jax.experimental.pallas.ops.gpu)
and of CUTLASS' persistent kernels: one block a multiprocessor, which goes from tile to tile; one
warpgroup that copies by TMA, and two that multiply.

Shapes: B batch, T positions, N tokens, D width, F hidden width. In the kernel: M rows and N
columns of the result, K the axis that is summed over.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

TILE_M, TILE_N, TILE_K = 128, 256, 64
STAGES = 3  # tiles of both operands in shared memory at once: 144 of a block's 227 KiB
WARPGROUPS = 2  # that multiply, each half of a tile's columns; one more copies
HALF = TILE_N // WARPGROUPS
EPILOGUE_N = 64  # columns that an epilogue has in registers, besides the sums
COPY_REGISTERS, REGISTERS = 72, 216  # of a thread: more of them do not fit, fewer spill


def _squared_relu(sums):
    return jnp.square(jnp.maximum(sums, 0.0))


def _squared_relu_gradient(sums, y):
    # The square root of y: Mosaic has no `sqrt`. It is 0 at 0.
    return sums * (2.0 * y * jax.lax.rsqrt(y + 1e-30))


def hopper_product(*refs):
    x_MK, w_KN, *y_MN, out_MN = refs
    swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    def shared(*shape):
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=swizzled)

    pl.run_scoped(
        partial(_tiles, x_MK, w_KN, y_MN[0] if y_MN else None, out_MN),
        x_SMK=shared(STAGES, TILE_M, TILE_K),
        w_SKN=shared(STAGES, TILE_K, TILE_N),
        out_WMN=shared(WARPGROUPS, TILE_M, HALF),
        filled=plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        emptied=plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=STAGES),
        y_filled=plgpu.Barrier(num_arrivals=1, num_barriers=WARPGROUPS),
        collective_axes="warpgroup",
    )


def _tiles(x_MK, w_KN, y_MN, out_MN, *, x_SMK, w_SKN, out_WMN, filled, emptied, y_filled):
    """Go through the tiles of a block: one warpgroup copies ahead, the others multiply."""
    (M, N), steps = out_MN.shape, x_MK.shape[1] // TILE_K
    warpgroup = jax.lax.axis_index("warpgroup")
    tiles = partial(plgpu.nd_loop, (M // TILE_M, N // TILE_N), collective_axes="block")

    def part(info, of_warpgroup):
        """The rows and columns of a warpgroup's part of a tile."""
        row, column = info.index
        columns = column * TILE_N + of_warpgroup * HALF
        return pl.ds(row * TILE_M, TILE_M), pl.ds(columns, HALF)

    @pl.when(warpgroup == WARPGROUPS)
    def _copy():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")

        @tiles()
        def _tile(info):
            rows = pl.ds(info.index[0] * TILE_M, TILE_M)
            columns = pl.ds(info.index[1] * TILE_N, TILE_N)

            def operands(step, _):
                count = info.local_index * steps + step
                slot = jax.lax.rem(count, STAGES)

                @pl.when(count >= STAGES)
                def _wait():
                    plgpu.barrier_wait(emptied.at[slot])

                along = pl.ds(step * TILE_K, TILE_K)
                plgpu.copy_gmem_to_smem(x_MK.at[rows, along], x_SMK.at[slot], filled.at[slot])
                plgpu.copy_gmem_to_smem(w_KN.at[along, columns], w_SKN.at[slot], filled.at[slot])

            # Step STAGES waits until the first is done, with which the previous results have left
            # shared memory: y can take their place.
            early = steps if y_MN is None else STAGES + 1
            jax.lax.fori_loop(0, early, operands, None)
            if y_MN is not None:
                for one in range(WARPGROUPS):
                    at = y_MN.at[part(info, one)]
                    plgpu.copy_gmem_to_smem(at, out_WMN.at[one], y_filled.at[one])
                jax.lax.fori_loop(early, steps, operands, None)

        for slot in range(STAGES):  # no barrier is left before all have seen its last phase
            plgpu.barrier_wait(emptied.at[slot])

    @pl.when(warpgroup < WARPGROUPS)
    def _multiply():
        plgpu.set_max_registers(REGISTERS, action="increase")

        @tiles()
        def _tile(info):
            def multiply(sums_ref):
                def products(step, _):
                    slot = jax.lax.rem(info.local_index * steps + step, STAGES)
                    plgpu.barrier_wait(filled.at[slot])
                    own = pl.ds(warpgroup * HALF, HALF)
                    plgpu.wgmma(sums_ref, x_SMK.at[slot], w_SKN.at[slot].at[:, own])
                    plgpu.wgmma_wait(0)

                    @pl.when(step == 0)
                    def _previous_results():
                        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

                    plgpu.barrier_arrive(emptied.at[slot])

                jax.lax.fori_loop(0, steps, products, None)
                return sums_ref[...]

            sums_MN = pl.run_scoped(multiply, plgpu.ACC((TILE_M, HALF), jnp.float32))
            if y_MN is not None:
                plgpu.barrier_wait(y_filled.at[warpgroup])
            for first in range(0, HALF, EPILOGUE_N):
                columns = slice(first, first + EPILOGUE_N)
                at = out_WMN.at[warpgroup].at[:, columns]
                sums = sums_MN[:, columns]
                result = (
                    _squared_relu(sums)
                    if y_MN is None
                    else _squared_relu_gradient(sums, at[...].astype(jnp.float32))
                )
                at[...] = result.astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_WMN.at[warpgroup], out_MN.at[part(info, warpgroup)])

        plgpu.wait_smem_to_gmem(0)


@partial(jax.jit, static_argnames=("blocks", "interpret"))  # lowered once, not in each layer
def product(
    x_MK: jax.Array,
    w_KN: jax.Array,
    y_MN: jax.Array | None = None,
    *,
    blocks: int,
    interpret: Any = None,
) -> jax.Array:
    """Return `squared_relu(x @ w)`, or with `y` the gradient `(x @ w) * 2 * sqrt(y)`.

    Args:
      x_MK: bfloat16, like all arrays; M a multiple of 128.
      w_KN: K a multiple of 64 and at least 256, N a multiple of 256.
      y_MN: results of `squared_relu`, of which `x @ w` is the gradient.
      blocks: the multiprocessors of the device.
      interpret: parameters of Mosaic GPU's interpreter, which runs the kernel on a CPU.

    Returns:
      [M, N] in bfloat16; the sums, the activation and its gradient are computed in float32.
    """
    (M, K), N = x_MK.shape, w_KN.shape[1]
    operands = [x_MK, w_KN] if y_MN is None else [x_MK, w_KN, y_MN]
    kernel = pl.kernel(
        hopper_product,
        jax.ShapeDtypeStruct((M, N), jnp.bfloat16),
        mesh=plgpu.Mesh(
            grid=(min(blocks, M // TILE_M * (N // TILE_N)),),
            grid_names=("block",),
            num_threads=WARPGROUPS + 1,
            thread_name="warpgroup",
        ),
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * M * N * K,
            transcendentals=0 if y_MN is None else M * N,
            bytes_accessed=2 * (sum(one.size for one in operands) + M * N),
        ),
        interpret=interpret or False,
    )
    return kernel(*operands)
