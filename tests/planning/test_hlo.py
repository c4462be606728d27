"""Reading programs: by hand on small texts, and a real one for eight devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax.mesh import make_mesh
from dpo_jax.planning.hlo import Collective, array_bytes, collectives, group_size, parse, runs
from dpo_jax.planning.outcomes import largest_buffers

TEXT = """\
HloModule jit_f, entry_computation_layout={(f32[16,8]{1,0})->f32[]}

%add (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%x.1, %y.1)
}

%inner (t.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t.1 = (s32[], f32[4]{0:T(128)}) parameter(0)
  %g.1 = f32[4]{0:T(128)} get-tuple-element(%t.1), index=1
  %ar.1 = f32[4]{0:T(128)} all-reduce(%g.1), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %copy.1 = s32[] copy(%i.1)
  %one.1 = s32[] constant(1)
  %next.1 = s32[] add(%copy.1, %one.1)
  ROOT %r.1 = (s32[], f32[4]) tuple(%next.1, %ar.1)
}

%inner_condition (t.2: (s32[], f32[4])) -> pred[] {
  %t.2 = (s32[], f32[4]) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%t.2), index=0
  %c.2 = s32[]{:T(128)} constant(5)
  ROOT %lt.2 = pred[] compare(%i.2, %c.2), direction=LT
}

%outer (t.3: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t.3 = (s32[], f32[4]) parameter(0)
  %ag.3 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%t.3), replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %w.3 = (s32[], f32[4]) while(%t.3), condition=%inner_condition, body=%inner
}

%outer_condition (t.4: (s32[], f32[4])) -> pred[] {
  %t.4 = (s32[], f32[4]) parameter(0)
  ROOT %p.4 = pred[] custom-call(%t.4), custom_call_target="asks the host"
}

%all-reduce-scatter.7 (p.5: f32[64]) -> f32[8] {
  %p.5 = f32[64] parameter(0)
  %ar.5 = f32[64] all-reduce(%p.5), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add
  ROOT %ds.5 = f32[8] dynamic-slice(%ar.5), dynamic_slice_sizes={8}
}

ENTRY %main (w: f32[16,8]) -> f32[] {
  %w = f32[16,8]{1,0} parameter(0), metadata={op_name="weights"}
  %t.6 = (s32[], f32[4]) tuple(%w, %w)
  %w.6 = (s32[], f32[4]) while(%t.6), condition=%outer_condition, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %s.6 = (f32[2,8], f32[16,8]) all-gather-start(%w), replica_groups={}, dimensions={0}
  %d.6 = f32[16,8] all-gather-done(%s.6)
  %cp.6 = f32[16,8] collective-permute(%d.6), source_target_pairs={{0,1},{1,0}}
  %f.6 = f32[8] fusion(%d.6), kind=kCustom, calls=%all-reduce-scatter.7
  ROOT %z.6 = f32[] all-to-all(%f.6), replica_groups={{0},{1}}
}
"""  # noqa: E501


def test_by_hand():
    program = parse(TEXT)
    assert [name for name, computation in program.items() if computation.entry] == ["main"]
    times, unsure = runs(program)
    assert (times["outer"], times["inner"], unsure) == (3, 15, set())
    found = {(each.kind, each.chips): each[2:] for each in collectives(program, devices=8).collectives}
    assert found == {
        ("all-reduce", 4): (15, 15 * 2 * 16 * 3 // 4),  # 16 bytes around a ring of 4 twice, less the own part
        ("all-gather", 2): (3, 3 * 256 // 2),
        ("all-gather", 8): (1, 512 * 7 // 8),  # 64 bytes of each of 8 to all
        ("collective-permute", 2): (1, 512),
        ("reduce-scatter", 8): (1, 256 * 7 // 8),  # 256 bytes, of which 32 stay
    }  # and none of a group of one


def test_a_collective_in_pieces_counts_once():
    """At full effort the TPU compiler puts one all-gather into several fusions, all with its channel."""
    piece = """\

%async_collective_fusion.{n} (p.{n}: bf16[4]) -> bf16[16] {{
  %p.{n} = bf16[4] parameter(0)
  ROOT %ag.{n} = bf16[16] all-gather(%p.{n}), channel_id={channel}, replica_groups=[2,4]<=[8], dimensions={{0}}
}}
"""
    head, entry = TEXT.split("ENTRY")
    pieces = "".join(piece.format(n=n, channel=channel) for n, channel in ((91, 5), (92, 5), (93, 55)))
    calls = "".join(f"  %f.{n} = bf16[16] fusion(%w), calls=%async_collective_fusion.{n}\n" for n in (91, 92, 93))
    text = head + pieces + "\nENTRY" + entry.replace("  ROOT %z.6", calls + "  ROOT %z.6")
    found = {(each.kind, each.chips): each[2:] for each in collectives(parse(text), devices=8).collectives}
    assert found["all-gather", 4] == (2, 2 * 32 * 3 // 4)


def test_a_loop_of_unknown_turns_counts_once_and_is_told():
    text = TEXT.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    times, unsure = runs(parse(text))
    assert (times["outer"], times["inner"]) == (1, 5) and {"outer", "inner"} <= unsure
    assert collectives(parse(text), devices=8).uncounted == 2


@pytest.mark.parametrize(
    ("old", "new", "turns"),
    [
        ("%one.1 = s32[] constant(1)", "%one.1 = s32[] constant(2)", 3),  # to 5 by 2
        ("%i.2, %c.2), direction=LT", "%i.2, %c.2), direction=NE", None),
        ("%i.2, %c.2), direction=LT", "%c.2, %i.2), direction=LT", None),
        ("add(%copy.1, %one.1)", "add(%copy.1, %copy.1)", None),
        ("add(%copy.1, %one.1)", "multiply(%copy.1, %one.1)", None),
        ("tuple(%next.1, %ar.1)", "custom-call(%next.1, %ar.1)", None),
    ],
)
def test_turns_are_known_of_a_counter_that_is_added_to_until_a_constant(old: str, new: str, turns: int | None):
    times, unsure = runs(parse(TEXT.replace(old, new)))
    assert (times["inner"], "inner" in unsure) == (3 * (turns or 1), turns is None)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, to_apply=%a", 3),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", 4),
        ("replica_groups=mesh['x'=2,'y'=8] {'x','y':(1)2}", 4),
        ("replica_groups={}", 8),
        ("source_target_pairs={{0,1},{1,2}}", 2),
    ],
)
def test_groups_however_they_are_written(groups: str, size: int):
    assert group_size(f", channel_id=1, {groups}, dimensions={{0}}", 8) == size


def test_bytes_of_types():
    assert array_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, pred[5], s32[], f8e4m3fn[4], u4[3])") == [12, 5, 4, 4, 3]


def test_largest_buffers_are_named():
    buffers = largest_buffers(parse(TEXT))
    assert buffers[0] == ("f32[16,8]", 512, "weights") and ("bf16[16,8]", 256, "ag.3") in buffers
    assert all("64" not in buffer.shape for buffer in buffers)  # inside of a fusion nothing is in memory


def test_a_real_program_for_eight_devices():
    mesh = make_mesh(fsdp=8)
    layers, width, rows = 6, 64, 16

    def loss(weights_LDD, x_RD):
        body = lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None)  # noqa: E731
        return jax.lax.scan(body, x_RD, weights_LDD)[0].sum()

    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, "fsdp"), ()))
    struct = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    weights = struct((layers, width, width), sharding=split)
    x = struct((rows, width), sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    with jax.set_mesh(mesh):
        text = jax.jit(loss).lower(weights, x).compile().as_text()
    found = {each.kind: each for each in collectives(parse(text), devices=8).collectives}
    size = 4 * width * width
    assert found["all-gather"] == Collective("all-gather", 8, layers, layers * size * 7 // 8)
    assert collectives(parse(text), devices=8).uncounted == 0
