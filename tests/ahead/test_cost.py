"""Costs read from HLO text: small programs written by hand, and programs of the compiler."""

import jax
import jax.numpy as jnp
import pytest

from qalign_jax.ahead.compile import compile_and_print
from qalign_jax.ahead.cost import Collective, Program, read_program
from qalign_jax.parallel.chips import parse_slice
from qalign_jax.parallel.mesh import make_mesh

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=16"
SUM = """%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}"""
QUADS = "replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}"


def entry(*instructions):
    return "\n".join(["ENTRY %main (p: f32[8]) -> f32[8] {", *instructions, "}"])


def read(*computations):
    return read_program("\n\n".join([HEADER, *computations]) + "\n")


def traffic(*instructions, others=()):
    return read(*others, entry(*instructions)).hbm_bytes


def only(program) -> Collective:
    (collective,) = program.collectives
    return collective


def loop(name, body, condition, carried="(s32[], f32[8])"):
    """The body and the condition of a while loop; `body` holds the instructions of the body."""
    return f"""%{name}_body (c: {carried}) -> {carried} {{
  %c = {carried} parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%c), index=1
{body}
}}

%{name}_condition (c: {carried}) -> pred[] {{
  %c = {carried} parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
{condition}
}}"""


def while_of(name, attributes=""):
    return (
        f"  %{name} = (s32[], f32[8]) while(%start), condition=%{name}_condition, "
        f"body=%{name}_body{attributes}"
    )


PSUM = (
    "  %psum = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%sum"
    ', metadata={op_name="layers/psum" stack_frame_id=3}'
)
BELOW_FIVE = """  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT"""


def test_the_trip_count_of_a_loop_multiplies():
    program = read(SUM, loop("scan", PSUM, BELOW_FIVE), entry(while_of("scan")))
    assert only(program) == Collective("all-reduce", "f32", 32, (0, 1), 5, "layers/psum")
    assert program.bytes_by_kind() == {"all-reduce": {"f32": 160}}
    assert program.hbm_bytes == 5 * (32 + 32)


def test_where_the_trip_count_is_unknown_it_is_the_callers():
    unknown = BELOW_FIVE.replace("constant(5)", "custom-call()")
    text = "\n\n".join([HEADER, SUM, loop("scan", PSUM, unknown), entry(while_of("scan"))]) + "\n"
    assert read_program(text).hbm_bytes == 32 + 32
    call = read_program(text, trips=64)
    assert call.hbm_bytes == 64 * (32 + 32)
    token = call.part(64)
    assert token.hbm_bytes == 32 + 32 and only(token).times == 1
    assert token.bytes_by_kind() == {"all-reduce": {"f32": 32}}


def test_nested_loops_multiply():
    inner = loop("inner", PSUM, BELOW_FIVE)
    outer = loop("outer", while_of("inner"), BELOW_FIVE.replace("5", "3"))
    assert only(read(SUM, inner, outer, entry(while_of("outer")))).times == 15


@pytest.mark.parametrize(
    "condition, times",
    [
        ("  %n = s32[] constant(4)\n  ROOT %c0 = pred[] compare(%n, %i), direction=GT", 4),
        ("  %n = s32[] constant(4)\n  ROOT %c0 = pred[] compare(%i, %n), direction=LE", 5),
        ("  ROOT %f = pred[] fusion(%n, %i), kind=kLoop, calls=%less\n", 1),
        (
            "  %one = s32[] constant(1)\n  %n = s32[] constant(7)\n"
            "  ROOT %f = pred[] fusion(%n, %i), kind=kLoop, calls=%less",
            7,
        ),
        (
            "  %n = s32[] get-tuple-element(%c), index=2\n"
            "  ROOT %c0 = pred[] compare(%i, %n), direction=LT",
            6,
        ),
        ("  ROOT %c0 = pred[] custom-call(%c)", 1),
    ],
)
def test_the_trip_count_is_found_where_the_condition_compares(condition, times):
    less = """%less (n: s32[], i: s32[]) -> pred[] {
  %n = s32[] parameter(0)
  %i = s32[] parameter(1)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}"""
    start = """  %zero = s32[] constant(0)
  %six = s32[] constant(6)
  %bound = s32[] copy(%six)
  %start = (s32[], f32[8], s32[]) tuple(%zero, %p, %bound)"""
    program = read(SUM, less, loop("scan", PSUM, condition), entry(start, while_of("scan")))
    assert only(program).times == times


def test_a_trip_count_that_the_compiler_states_is_taken():
    stated = ', backend_config={"known_trip_count":{"n":"12"}}'
    program = read(SUM, loop("scan", PSUM, BELOW_FIVE), entry(while_of("scan", stated)))
    assert only(program).times == 12


def async_gather(number, channel, chain):
    """The fusions that hold the start, middle and end of one all-gather, and their calls."""
    gather = (
        f"all-gather(%p0), channel_id={channel}, {QUADS}, dimensions={{0}}, "
        f'frontend_attributes={{chain_id="{chain}"}}, metadata={{op_name="mlp/gather"}}'
    )
    fusions = f"""%start_{number} (p0: bf16[64]) -> (bf16[64], bf16[256], u32[]) {{
  %p0 = bf16[64]{{0}} parameter(0)
  %g = bf16[256]{{0}} {gather}
  ROOT %s = (bf16[64]{{0}}, bf16[256]{{0}}, u32[]{{:S(2)}}) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.{number} (p0: bf16[64], p1: bf16[256], x: f32[8]) -> \
(f32[8], bf16[64], bf16[256]) {{
  %p0 = bf16[64]{{0}} parameter(0)
  %p1 = bf16[256]{{0}} parameter(1)
  %x = f32[8]{{0}} parameter(2)
  %y = f32[8]{{0}} negate(%x)
  %g = bf16[256]{{0}} {gather}
  ROOT %t = (f32[8]{{0}}, bf16[64]{{0}}, bf16[256]{{0}}) tuple(%y, %p0, %g)
}}

%done_{number} (p0: bf16[64], p1: bf16[256]) -> bf16[256] {{
  %p0 = bf16[64]{{0}} parameter(0)
  %p1 = bf16[256]{{0}} parameter(1)
  %g = bf16[256]{{0}} {gather}
  ROOT %d = bf16[256]{{0}} custom-call(%p0, %p1, %g), custom_call_target="AsyncCollectiveDone"
}}"""
    calls = f"""  %s{number} = (bf16[64]{{0}}, bf16[256]{{0}}, u32[]{{:S(2)}}) fusion(%w), \
kind=kCustom, calls=%start_{number}
  %a{number} = bf16[64]{{0}} get-tuple-element(%s{number}), index=0
  %b{number} = bf16[256]{{0}} get-tuple-element(%s{number}), index=1
  %m{number} = (f32[8]{{0}}, bf16[64]{{0}}, bf16[256]{{0}}) fusion(%a{number}, %b{number}, %x), \
kind=kOutput, calls=%async_collective_fusion.{number}
  %d{number} = bf16[256]{{0}} fusion(%a{number}, %b{number}), kind=kCustom, calls=%done_{number}"""
    return fusions, calls


WEIGHT = "  %w = bf16[64]{0} parameter(1)\n  %x = f32[8]{0} parameter(0)"


def test_an_asynchronous_collective_counts_once():
    fusions, calls = async_gather(1, 7, 0)
    program = read(fusions, entry(WEIGHT, calls))
    assert only(program) == Collective("all-gather", "bf16", 512, (0, 4, 8, 12), 1, "mlp/gather")
    # operand and result of the collective, then of the computation that overlaps with it
    assert program.hbm_bytes == (128 + 512) + (32 + 32)


def test_two_asynchronous_collectives_of_one_channel_count_twice():
    parts = [async_gather(1, 1, 0), async_gather(2, 1, 1)]
    fusions, calls = zip(*parts, strict=True)
    assert read(*fusions, entry(WEIGHT, *calls)).bytes_by_kind() == {"all-gather": {"bf16": 1024}}


def test_collectives_outside_of_fusions_count_each_though_their_channel_is_one():
    again = PSUM.replace("%psum", "%again").replace("(%x)", "(%psum)")
    program = read(SUM, entry("  %x = f32[8]{0} parameter(0)", PSUM, again))
    assert program.bytes_by_kind() == {"all-reduce": {"f32": 64}}


def test_an_all_reduce_that_is_sliced_in_its_fusion_is_a_reduce_scatter():
    fused = f"""%all-reduce-scatter.2.clone (input: bf16[60,8]) -> bf16[16,8] {{
  %input = bf16[60,8]{{1,0}} parameter(0)
  %zero = bf16[] constant(0)
  %pad = bf16[64,8]{{1,0}} pad(%input, %zero), padding=0_4x0_0
  %all-reduce.1 = bf16[64,8]{{1,0}} all-reduce(%pad), channel_id=4, {QUADS}, to_apply=%sum
  %id = u32[] partition-id()
  ROOT %slice = bf16[16,8]{{1,0}} dynamic-slice(%all-reduce.1, %id, %id), \
dynamic_slice_sizes={{16,8}}
}}"""
    gradient = "  %g = bf16[60,8]{1,0} parameter(0)"
    scatter = (
        "  %f = bf16[16,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.2.clone, "
        'metadata={op_name="gradient"}'
    )
    program = read(SUM, fused, entry(gradient, scatter))
    assert only(program) == Collective("reduce-scatter", "bf16", 1024, (0, 4, 8, 12), 1, "gradient")
    assert program.wire_bytes == 768
    assert program.hbm_bytes == 60 * 8 * 2 + 16 * 8 * 2
    # every such fusion counts, also where two share a channel
    twice = read(SUM, fused, entry(gradient, scatter, scatter.replace("%f", "%h")))
    assert twice.bytes_by_kind() == {"reduce-scatter": {"bf16": 2048}}


@pytest.mark.parametrize(
    "groups, members",
    [
        ("{{0,4,8},{3,4,5}}", (0, 4, 8)),
        ("[4,4]<=[16]", (0, 1, 2, 3)),
        ("[4,4]<=[4,4]T(1,0)", (0, 4, 8, 12)),
        ("[2,8]<=[4,2,2]T(1,0,2)", (0, 1, 4, 5, 8, 9, 12, 13)),
        ("mesh['axis_0'=16] {'axis_0'}", tuple(range(16))),
        ("mesh['a'=2,'b'=8] {'a'}", (0, 8)),
        ("mesh['a'=2,'b'=8] {'b'}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("mesh['a'=2,'b'=8] {'a','b':(1)4}", (0, 2, 4, 6, 8, 10, 12, 14)),
        ("mesh['a'=2,'b'=8] {'b':(4)2}", (0, 1)),
        ("{}", tuple(range(16))),
    ],
)
def test_replica_groups_of_every_notation(groups, members):
    gather = f"  %g = f32[32]{{0}} all-gather(%x), replica_groups={groups}, dimensions={{0}}"
    assert only(read(entry("  %x = f32[8]{0} parameter(0)", gather))).members == members


def test_combined_collectives_sum_their_arrays_and_starts_count_but_not_dones():
    program = read(
        SUM,
        entry(
            "  %x = f32[8]{0} parameter(0)",
            "  %y = bf16[100,4]{1,0:T(8,128)(2,1)S(1)} parameter(1)",
            "  %both = (f32[8]{0}, /*index=1*/bf16[100,4]{1,0}) all-reduce(%x, %y), "
            "replica_groups=[4,4]<=[16], to_apply=%sum",
            "  %s = ((f32[8]{0}, bf16[100,4]{1,0}), (f32[32]{0}, bf16[400,4]{1,0})) "
            "all-gather-start(%x, %y), replica_groups=[4,4]<=[16], dimensions={0}",
            "  %d = (f32[32]{0}, bf16[400,4]{1,0}) all-gather-done(%s)",
            "  %ps = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}) collective-permute-start(%x), "
            "source_target_pairs={{0,1},{1,0}}",
            "  %pd = f32[8]{0} collective-permute-done(%ps)",
        ),
    )
    assert program.collectives == (
        Collective("all-reduce", "bf16", 832, (0, 1, 2, 3), 1, ""),
        Collective("all-gather", "bf16", 128 + 3200, (0, 1, 2, 3), 1, ""),
        Collective("collective-permute", "f32", 32, (0, 1), 1, ""),
    )
    assert program.wire_bytes == 2 * 832 * 3 // 4 + 3328 * 3 // 4 + 32


@pytest.mark.parametrize(
    "dtype, size",
    [("pred", 8), ("s4", 4), ("u8", 8), ("f8e4m3fn", 8), ("bf16", 16), ("s64", 64), ("token", 0)],
)
def test_the_bytes_of_every_dtype(dtype, size):
    instructions = f"  %x = {dtype}[8]{{0}} parameter(0)", f"  %y = {dtype}[8]{{0}} copy(%x)"
    assert traffic(*instructions) == 2 * size


def test_a_buffer_in_vmem_is_no_hbm_traffic():
    assert traffic(
        "  %x = f32[8,128]{1,0:T(8,128)} parameter(0)",
        "  %s = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) "
        "copy-start(%x)",
        "  %d = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%s)",
        "  %y = f32[8,128]{1,0:T(8,128)S(1)} negate(%d)",
        "  %z = f32[8,128]{1,0:T(8,128)} multiply(%y, %x)",
    ) == 4096 * (1 + 0 + 2)


def test_what_only_renames_moves_nothing():
    assert not traffic(
        "  %x = f32[8]{0} parameter(0)",
        "  %b = f32[2,4]{1,0} bitcast(%x)",
        "  %t = (f32[8]{0}, f32[2,4]{1,0}) tuple(%x, %b)",
        "  %g = f32[8]{0} get-tuple-element(%t), index=0",
        "  %o = f32[8]{0} opt-barrier(%g)",
        '  %e = f32[80]{0} custom-call(), custom_call_target="AllocateBuffer"',
    )


def test_slices_and_updates_move_only_their_part():
    assert (
        traffic(
            "  %x = f32[64,8]{1,0} parameter(0)",
            "  %i = s32[]{:S(6)} parameter(1)",
            "  %s = f32[1,8]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,8}",
            "  %u = f32[64,8]{1,0} dynamic-update-slice(%x, %s, %i, %i)",
            "  %a = ((f32[64,8]{1,0}), f32[2,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%u), "
            "slice={[0:2], [0:8]}",
            "  %d = f32[2,8]{1,0:S(1)} slice-done(%a)",
        )
        == (32 + 32) + (32 + 32) + 64
    )


def test_a_fusion_that_slices_its_operand_reads_the_slice():
    nested = """%inner (p: f32[64,8], i: s32[]) -> f32[8] {
  %p = f32[64,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %ds = f32[1,8]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,8}
  ROOT %b = f32[8]{0} bitcast(%ds)
}"""
    fused = """%outer (p: f32[64,8], i: s32[], q: f32[8]) -> f32[8] {
  %p = f32[64,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %q = f32[8]{0} parameter(2)
  %row = f32[8]{0} fusion(%p, %i), kind=kLoop, calls=%inner
  ROOT %y = f32[8]{0} add(%row, %q)
}"""
    call = [
        "  %w = f32[64,8]{1,0} parameter(0)",
        "  %i = s32[]{:S(6)} parameter(1)",
        "  %x = f32[8]{0} parameter(2)",
        "  %f = f32[8]{0} fusion(%w, %i, %x), kind=kLoop, calls=%outer",
    ]
    assert traffic(*call, others=[nested, fused]) == 3 * 32
    # the slice is of the operand in other tiles, which are the same memory
    tiles = nested.replace("dynamic-slice(%p,", "dynamic-slice(%t,").replace(
        "  %ds", "  %t = f32[64,8]{1,0:T(8)} fusion(%p), kind=kLoop, "
        "output_to_operand_aliasing={{}: (0, {})}, calls=%other\n  %ds",
    )  # fmt: skip
    assert traffic(*call, others=[tiles, fused]) == 3 * 32
    whole = fused.replace("add(%row, %q)", "custom-call(%row, %q, %p)")
    assert traffic(*call, others=[nested, whole]) == 2 * 32 + 64 * 8 * 4


def test_a_fusion_that_updates_in_place_writes_the_update():
    update = """%update (p: f32[64,8], i: s32[], q: bf16[8]) -> (f32[64,8], f32[64,8]) {
  %p = f32[64,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %q = bf16[8]{0} parameter(2)
  %c = f32[8]{0} convert(%q)
  %b = f32[1,8]{1,0} bitcast(%c)
  %u = f32[64,8]{1,0} dynamic-update-slice(%p, %b, %i, %i)
  ROOT %t = (f32[64,8]{1,0}, f32[64,8]{1,0}) tuple(%u, %u)
}"""
    call = [
        "  %w = f32[64,8]{1,0} parameter(0)",
        "  %i = s32[]{:S(6)} parameter(1)",
        "  %x = bf16[8]{0} parameter(2)",
        "  %f = (f32[64,8]{1,0}, f32[64,8]{1,0}) fusion(%w, %i, %x), kind=kLoop, calls=%update",
    ]
    assert traffic(*call, others=[update]) == 16 + 2 * 32
    single = update.replace("(f32[64,8], f32[64,8]) {", "f32[64,8] {")
    single = single.replace("  %u =", "  ROOT %u =").replace("  ROOT %t", "  %t")
    assert traffic(*call, others=[single]) == 16 + 32


def test_a_brace_inside_a_kernel_ends_no_computation():
    program = read(
        SUM,
        entry(
            "  %x = f32[8]{0} parameter(0)",
            "  %k = (f32[8]{0}, bf16[8]{0}) custom-call(%x, %x), custom_call_target="
            '"tpu_custom_call", frontend_attributes={kernel_metadata={',
            '"xprof_metadata":"{\\"block_q\\": 512}"',
            '}}, backend_config={"body":"module {',
            "  %0 = f32[999] copy(%x)",
            "}",
            '"}',
            PSUM,
        ),
    )
    assert only(program).bytes == 32
    assert program.hbm_bytes == (32 + 32 + 16) + (32 + 32)


def test_the_branch_that_moves_most_counts():
    branches = """%small (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} negate(%x)
}

%large (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = f32[8]{0} negate(%x)
  ROOT %z = f32[8]{0} negate(%y)
}"""
    conditional = "  %y = f32[8]{0} conditional(%i, %x, %x), branch_computations={%large, %small}"
    assert traffic(conditional, others=[branches]) == 4 * 32
    call = "  %y = f32[8]{0} call(%x), to_apply=%small"
    assert traffic(call, others=[branches]) == 2 * 32


def test_what_is_not_understood_is_skipped():
    odd = ["  %x = f32[8]{0} parameter(0)", "  %y = f32[8] what", "  ???", "  %z = (f32[8] copy(%x"]
    assert traffic(*odd, "  %w = f32[8]{0} copy(%x)", "  %v = f32[8]{0} copy(%nowhere)") == 96


@pytest.mark.parametrize("text", ["", "HloModule nothing", SUM])
def test_a_text_without_entry_is_an_empty_program(text):
    assert read_program(text) == Program((), 0)


def test_what_sparse_cores_do_counts():
    program = read(
        SUM,
        "%offloaded (x: f32[8]) -> f32[8] {\n"
        "  %x = f32[8]{0} parameter(0)\n"
        "  ROOT %s = f32[8]{0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%sum\n"
        '}, execution_thread="sparsecore"',
        "%wrapper (x: f32[8]) -> f32[8] {\n"
        "  %x = f32[8]{0} parameter(0)\n"
        '  ROOT %c = f32[8]{0} custom-call(%x), custom_call_target="offload", '
        "called_computations={%offloaded}\n"
        '}, execution_thread="sparsecore"',
        entry(
            "  %x = f32[8]{0} parameter(0)",
            "  %start = ((), (), (s32[8]{0:S(8)})) async-start(), "
            'async_execution_thread="sparsecore", calls=%wrapper',
            "  %update = ((f32[8]{0}), f32[8]{0}, (s32[8]{0:S(8)})) async-update(%start, %x)",
            "  %done = f32[8]{0} async-done(%update)",
        ),
    )
    assert program.bytes_by_kind() == {"all-reduce": {"f32": 32}}
    assert program.hbm_bytes == 64


@pytest.mark.slow
def test_a_gather_that_v5p_moves_to_its_sparse_cores_is_printed_and_counted():
    pytest.importorskip("libtpu")
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")  # libtpu ends the process over flags of the CPU backend
        mesh = make_mesh("fsdp:2x2", parse_slice("v5p:2x2x1").devices())
        whole = jax.sharding.NamedSharding(mesh, jax.P())
        table = jax.ShapeDtypeStruct((32_000, 512), jnp.float32, sharding=whole)
        ids = jax.ShapeDtypeStruct((2048,), jnp.int32, sharding=whole)
        lowered = jax.jit(lambda table, ids: table[ids] * 2).lower(table, ids)
        compiled, text = compile_and_print(lowered)
    with pytest.raises(jax.errors.JaxRuntimeError):  # if as_text works, compile_and_print can go
        compiled.as_text()
    looked_up = 2048 * 512 * 4
    assert 2 * looked_up <= read_program(text).hbm_bytes < 6 * looked_up


def test_a_program_of_the_compiler_is_read():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def layer(x, weight):
        weight = jax.lax.all_gather(weight, "fsdp", axis=0, tiled=True)
        return jax.lax.psum(jnp.tanh(x @ weight), "data"), None

    @jax.jit
    @jax.shard_map(
        mesh=mesh,
        in_specs=(jax.P(), jax.P(None, "fsdp")),
        out_specs=jax.P(),
        check_vma=False,
    )
    def layers(x, weights):
        return jax.lax.scan(layer, x, weights)[0]

    x = jax.ShapeDtypeStruct((4, 64), jnp.float32)
    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
    program = read_program(layers.lower(x, weights).compile().as_text())
    found = {c.kind: (c.dtype, c.bytes, c.members, c.times) for c in program.collectives}
    assert found == {
        "all-gather": ("f32", 64 * 64 * 4, (0, 1, 2, 3), 5),
        "all-reduce": ("f32", 4 * 64 * 4, (0, 4), 5),
    }
    assert program.wire_bytes == 5 * (64 * 64 * 4 * 3 // 4 + 4 * 64 * 4)
    # lower bound: each layer writes the gathered weight and reads it
    assert 5 * 2 * 64 * 64 * 4 < program.hbm_bytes < 5 * 10 * 64 * 64 * 4
