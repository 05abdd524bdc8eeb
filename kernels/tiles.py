"""What all kernels with matrix products share: the product of two tiles, the order of tiles, activations.

Tiles of C in the order in which programs take them, for GROUP = 2 (column by column, two rows of tiles at a time):

         n=0 n=1 n=2
    m=0   0   2   4       Six programs that run at once touch 2 rows of A's tiles and 3 columns of B's, five in all.
    m=1   1   3   5       Row by row, six programs of a wide C would touch 1 + 6 = 7: the rest comes out of the L2 cache.
    m=2   6   7   8
"""

from kernels.triton_api import is_interpreting, jit, tl

INTERPRETING = tl.constexpr(is_interpreting())
FLOAT32 = "tf32x3"
"""How float32 is multiplied: as three products of TF32 halves on tensor cores, which loses about as much as float32 itself. On
CUDA cores a tile would need whole strips of K in registers, and spill kilobytes."""


@jit
def tile_product(a, b, accumulator, PRECISION: tl.constexpr):
    """Return accumulator + a · b. PRECISION only matters when a and b are float32."""
    if INTERPRETING and a.dtype == tl.bfloat16:  # it keeps bfloat16 as raw 16-bit integers, and would multiply those
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=accumulator.dtype)


@jit
def tile_in_groups(tile, num_tiles_m, num_tiles_n, GROUP: tl.constexpr):
    """Return the row and the column of a tile, as the picture at the top has them."""
    group_size = GROUP * num_tiles_n
    first_m = tile // group_size * GROUP
    rows_here = tl.minimum(num_tiles_m - first_m, GROUP)  # the last group may be lower
    within = tile % group_size
    return first_m + within % rows_here, within // rows_here


@jit
def activate(x, ACTIVATION: tl.constexpr):
    """Return silu(x) = x / (1 + exp(-x)), gelu(x) = x/2 · (1 + erf(x / √2)), or x for "none"; x is float32."""
    if ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x
