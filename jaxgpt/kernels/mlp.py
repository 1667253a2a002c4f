"""The MLP with ReLU^2 inside its products: what the first makes is squared before it is written.

XLA writes the first product and reads it again for the activation, and likewise backward, for cuBLAS has no such
epilogue. Here the activation is all that is kept: the product itself is not needed, since sqrt(ReLU^2) rounded to
bfloat16 is ReLU again, exactly (a square's rounding moves its root by at most 2^-9.5 of it, and half a step is more).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu
from jaxtyping import Array, Float

TILE, DEPTH, BANK = 128, 64, 64
"""A warpgroup's tile is 128 x 128, of which 64 columns at a time leave; 64 numbers are multiplied at once."""
CLUSTER = 2
"""Thread blocks side by side that share what they read of the left factor."""


@jax.custom_vjp
def relu_squared_mlp(
    x: Float[Array, "N D"], w_in: Float[Array, "D F"], w_out: Float[Array, "F D"]
) -> Float[Array, "N D"]:
    """max(x w_in, 0)^2 w_out in the dtype of all three. Gradients of weights are as wide as the weights."""
    return activated_product(x, w_in) @ w_out


def _mlp_forward(x, w_in, w_out):
    active = activated_product(x, w_in)
    return active @ w_out, (x, w_in, w_out, active)


def _mlp_backward(kept, dy):
    x, w_in, w_out, active = kept
    d_hidden = gradient_product(dy, w_out.T, active)
    transposed = (((0,), (0,)), ((), ()))
    dw_in, dw_out = lax.dot_general(x, d_hidden, transposed), lax.dot_general(active, dy, transposed)
    return d_hidden @ w_in.T, dw_in, dw_out


relu_squared_mlp.defvjp(_mlp_forward, _mlp_backward)


def fits(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> bool:
    """Whether the kernel can multiply these here."""
    (rows, depth), columns = a.shape, b.shape[1]
    if jax.default_backend() != "gpu" or getattr(jax.devices()[0], "compute_capability", "") != "9.0":
        return False
    divides = rows % (2 * TILE) == depth % DEPTH == columns % (CLUSTER * TILE) == 0
    return divides and a.dtype == jnp.bfloat16


def activated_product(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> Float[Array, "M N"]:
    """max(a b, 0)^2, the product rounded first."""
    if fits(a, b):
        return _product(a, b, processors=jax.devices()[0].core_count)
    return jnp.square(jnp.maximum(a @ b, 0))


def gradient_product(
    a: Float[Array, "M K"], b: Float[Array, "K N"], active: Float[Array, "M N"]
) -> Float[Array, "M N"]:
    """2 sqrt(active) (a b), the root and the product rounded first."""
    if fits(a, b):
        return _product(a, b, active, processors=jax.devices()[0].core_count)
    wide = active.astype(jnp.promote_types(active.dtype, jnp.float32))
    return (2 * jnp.sqrt(wide).astype(active.dtype).astype(wide.dtype) * (a @ b)).astype(a.dtype)


@functools.partial(jax.jit, static_argnames="processors")  # see `jaxgpt.kernels`
def _product(a, b, active=None, *, processors):
    """A product by tiles, each taken over all its depth by two warpgroups while a third fetches; then the epilogue."""
    (rows, depth), columns = a.shape, b.shape[1]
    tiles = rows // (2 * TILE), columns // (CLUSTER * TILE)
    layout = mosaic_gpu.TilingTransform((8, BANK)), mosaic_gpu.SwizzleTransform(2 * BANK)
    shared = functools.partial(mosaic_gpu.BlockSpec, memory_space=mosaic_gpu.SMEM, transforms=layout)
    forward = active is None
    stages, banks = (4, 1) if forward else (3, 2)

    def pipeline(multiply, around):
        return mosaic_gpu.emit_pipeline_warp_specialized(
            multiply,
            grid=(depth // DEPTH,),
            in_specs=[
                shared((2 * TILE, DEPTH), lambda k: (0, k), collective_axes=("cluster",)),
                shared((DEPTH, TILE), lambda k: (k, 0)),
            ],
            wg_axis="warpgroup",
            num_compute_wgs=2,
            memory_registers=40,
            max_concurrent_steps=stages,
            compute_context=around,
        )

    def kernel(*refs):
        a_ref, b_ref, *active_refs, out_ref = refs
        unused = pipeline(lambda *_: None, lambda *_: None)

        @functools.partial(
            pl.run_scoped,
            allocations=unused.get_allocations(a_ref, b_ref),
            bank_ref=mosaic_gpu.SMEM((2, banks, TILE, BANK), out_ref.dtype, transforms=layout),
            arrived=None if forward else mosaic_gpu.Barrier(num_barriers=2 * banks),
            collective_axes="warpgroup",
        )
        def tiled(allocations, bank_ref, arrived):
            warpgroup, block = lax.axis_index("warpgroup"), lax.axis_index("cluster")

            @mosaic_gpu.nd_loop((tiles[0] * tiles[1],), collective_axes="blocks")
            def tile(loop):
                i, j = mosaic_gpu.planar_snake(loop.index[0], tiles, 1, 16)
                i, j = i * 2 * TILE, (j * CLUSTER + block) * TILE
                mine = pl.ds(i + warpgroup * TILE, TILE)

                def bank_of(ref, bank):
                    return ref.at[mine, pl.ds(j + bank * BANK, BANK)]

                def around(run):
                    if not forward:
                        mosaic_gpu.wait_smem_to_gmem(0, wait_read_only=True)
                        for bank in range(banks):
                            barrier = arrived.at[warpgroup * banks + bank]
                            source = bank_of(active_refs[0], bank)
                            mosaic_gpu.copy_gmem_to_smem(source, bank_ref.at[warpgroup, bank], barrier)

                    @functools.partial(pl.run_scoped, sums_ref=mosaic_gpu.ACC((TILE, TILE), jnp.float32))
                    def multiplied(sums_ref):
                        run(sums_ref)
                        product = sums_ref[...].astype(out_ref.dtype)
                        for bank in range(TILE // BANK):
                            here = bank_ref.at[warpgroup, bank % banks]
                            part = product[:, bank * BANK : (bank + 1) * BANK].astype(jnp.float32)
                            if forward:
                                mosaic_gpu.wait_smem_to_gmem(0, wait_read_only=True)
                                part = jnp.maximum(part, 0.0)
                                here[...] = (part * part).astype(out_ref.dtype)
                            else:
                                mosaic_gpu.barrier_wait(arrived.at[warpgroup * banks + bank])
                                square = here[...].astype(jnp.float32)
                                root = square * lax.rsqrt(jnp.maximum(square, jnp.finfo(jnp.float32).tiny))
                                here[...] = (2.0 * root.astype(out_ref.dtype).astype(jnp.float32) * part).astype(
                                    out_ref.dtype
                                )
                            mosaic_gpu.commit_smem()
                            mosaic_gpu.copy_smem_to_gmem(here, bank_of(out_ref, bank))

                def multiply(_, a_smem, b_smem, sums_ref):
                    mosaic_gpu.wgmma(sums_ref, a_smem.at[pl.ds(warpgroup * TILE, TILE)], b_smem)
                    mosaic_gpu.wgmma_wait(0)
                    return sums_ref

                left, right = a_ref.at[pl.ds(i, 2 * TILE), :], b_ref.at[:, pl.ds(j, TILE)]
                pipeline(multiply, around)(left, right, allocations=allocations)

        mosaic_gpu.wait_smem_to_gmem(0, wait_read_only=True)

    return mosaic_gpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((rows, columns), a.dtype),
        grid=(processors // CLUSTER,),
        grid_names=("blocks",),
        cluster=(CLUSTER,),
        cluster_names=("cluster",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=mosaic_gpu.CompilerParams(lowering_semantics=mosaic_gpu.LoweringSemantics.Warpgroup),
    )(a, b, *([] if forward else [active]))
