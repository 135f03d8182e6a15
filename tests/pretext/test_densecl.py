"""DenseCL: losses, matches and queues against plain loops; the decoder that is trained with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from tests.pretext.small import GroupNormEncoder, make_batch
from torch import Tensor, nn
from torch import distributed as dist

import fewmask
from fewmask import cli, decoders, encoders
from fewmask.checkpoint import start_key
from fewmask.pretext.contract import Pool
from fewmask.pretext.densecl import (
    DenseCL,
    DenseCLTask,
    best_matches,
    dense_level,
    info_nce,
    queue_length,
)
from fewmask.pretext.joint import decoder_for
from fewmask.settings import FinetuneSettings
from fewmask.types import Batch, Labels, UserError
from fewmask.workflows import start_model

POOL = Pool(images=24, batch_size=8, steps=100)
LABELS = Labels(("background", "disc"), (0, 1))


def make_task(pool: Pool = POOL, **settings: float) -> DenseCLTask:
    torch.manual_seed(1)
    return DenseCL(projection=8, **settings).task(GroupNormEncoder(), 24, pool)


def unit(vector: Tensor) -> Tensor:
    return vector.double() / vector.double().norm()


def test_info_nce_is_the_formula() -> None:
    torch.manual_seed(0)
    queries, positives = torch.randn(5, 6), torch.randn(5, 6)
    keys = nn.functional.normalize(torch.randn(7, 6), dim=1)
    left_out = torch.rand(5, 7) < 0.3
    loss, first = info_nce(queries, positives, keys, left_out, 0.2)
    expected, firsts = 0.0, 0
    for n in range(5):
        own = float(unit(queries[n]) @ unit(positives[n]))
        others = [float(unit(queries[n]) @ unit(keys[k])) for k in range(7) if not left_out[n, k]]
        total = sum(math.exp(s / 0.2) for s in [own, *others])
        expected -= math.log(math.exp(own / 0.2) / total) / 5
        firsts += own > max(others)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert first.item() == pytest.approx(firsts / 5)


def test_parts_match_the_most_similar_ones() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(3, 4, 9), torch.randn(3, 4, 9)
    found = best_matches(first, second)
    for b, i in itertools.product(range(3), range(9)):
        similar = [float(unit(first[b, :, i]) @ unit(second[b, :, j])) for j in range(9)]
        assert int(found[b, i]) == similar.index(max(similar))


def test_the_losses_are_those_of_whole_views_and_of_matched_parts() -> None:
    """A forward pass again, image by image and part by part."""
    task, batch = make_task(), make_batch()
    seen: list[Tensor] = []
    encode = task.encoder.forward
    task.encoder.forward = lambda x: seen.append(x) or encode(x)  # type: ignore[method-assign]
    task.teacher.encoder.forward = task.encoder.forward  # the same weights at the start
    losses = task(batch)
    expected = {"whole": 0.0, "parts": 0.0}
    maps = [encode(x)[-1].detach() for x in seen]
    whole = [task.head(m.mean((2, 3))).detach() for m in maps]
    parts = [task.part_head(m).flatten(2).detach() for m in maps]
    flat = [m.flatten(2) for m in maps]
    for b in range(8):
        others = [k for k in range(8) if k != b]
        pairs = [(whole[0][b], whole[1][b], [whole[1][k] for k in others], "whole", 1)]
        for i in range(36):
            similar = [float(unit(flat[0][b, :, i]) @ unit(flat[1][b, :, j])) for j in range(36)]
            match = parts[1][b, :, similar.index(max(similar))]
            keys = [parts[1][k].mean(1) for k in others]
            pairs.append((parts[0][b, :, i], match, keys, "parts", 36))
        for query, positive, keys, name, many in pairs:
            own = math.exp(float(unit(query) @ unit(positive)) / 0.2)
            rest = sum(math.exp(float(unit(query) @ unit(key)) / 0.2) for key in keys)
            expected[name] -= 0.5 * math.log(own / (own + rest)) / (8 * many)
    found = {name: loss.item() for name, loss in losses.items()}
    assert found == pytest.approx(expected, rel=1e-4)
    assert task.signals["chance"].item() == pytest.approx(1 / 8)


def pictures_of(step: int) -> Batch:
    """Every step another third of a pool of 24 pictures."""
    return make_batch(step=step)._replace(rows=torch.arange(8) + 8 * step % 24)


def test_the_queue_holds_the_newest_keys_and_never_a_picture_s_own() -> None:
    task = make_task(queue=16)
    chances = []
    for step in range(3):
        task(pictures_of(step))
        chances.append(task.signals["chance"].item())
    assert sorted(task.rows.tolist()) == list(range(8, 24))
    assert chances == pytest.approx([1 / 8, 1 / 16, 1 / 16])
    assert int(task.place) == 8
    before = task.keys.clone()
    task(pictures_of(2))  # their older keys are in the queue still
    assert sorted(task.rows.tolist()) == sorted([*range(16, 24), *range(16, 24)])
    assert task.signals["chance"].item() == pytest.approx(1 / 15)
    kept = (task.keys == before).all(dim=1)
    assert kept.sum() == 8
    torch.testing.assert_close(task.keys.norm(dim=1), torch.ones(16))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    task = make_task(queue=12)  # less than two batches: the pointer wraps within one
    wrapped = nn.parallel.DistributedDataParallel(task)
    for step in (0, 1):
        sum(wrapped(make_batch(rank, 2, step=step)).values()).backward()
        task.after_step(step, 100)
    torch.save(dict(task.named_buffers()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_hold_the_queue_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    task = make_task(queue=12)
    for step in (0, 1):
        task(make_batch(step=step))
        task.after_step(step, 100)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, own in task.named_buffers():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], own, rtol=1e-4, atol=1e-6)


def test_the_teacher_follows_and_no_gradient_moves_it() -> None:
    task = make_task(momentum=0.9)
    start = task.teacher.head[0].weight.clone()
    with torch.no_grad():
        task.head[0].weight.add_(1.0)
    task.after_step(0, 100)
    torch.testing.assert_close(task.teacher.head[0].weight, start + 0.1)
    assert not any(p.requires_grad for p in task.teacher.parameters())
    assert {name for name, _ in task.teacher.named_children()} == {"encoder", "head", "part_head"}


@pytest.mark.parametrize(
    ("size", "stride"), [(224, 32), (160, 32), (128, 16), (96, 16), (64, 8), (32, 4), (8, 2)]
)
def test_parts_come_from_the_coarsest_map_of_five_cells(size: int, stride: int) -> None:
    assert 2 ** dense_level([3, 64, 64, 128, 256, 512], size) == stride
    assert dense_level([3, 0, 96, 192, 384, 768], 224) == 5
    assert dense_level([3, 0, 96, 192, 384, 768], 8) == 2  # no map of stride 2


def test_the_queue_is_as_long_as_pool_and_teacher_allow() -> None:
    assert queue_length(Pool(1_281_167, 256, 1_000_000), 0.999) == 65536
    assert queue_length(Pool(2000, 96, 300), 0.999) == 1920  # whole batches of the pool
    assert queue_length(Pool(12000, 96, 300), 0.9) == 960  # what ten steps bring
    assert queue_length(Pool(10, 8, 300), 0.0) == 8


def test_a_few_steps_rank_the_positives_first() -> None:
    levels = torch.linspace(10, 245, 8).to(torch.uint8)[:, None, None, None]
    pictures = levels.expand(8, 3, 24, 24).contiguous()
    encoder = GroupNormEncoder()
    encoder.one[1] = nn.Identity()  # normalisation takes the brightness out
    encoder.two[1] = nn.Identity()
    torch.manual_seed(1)
    task = DenseCL(colour=0.0, grey=0.0, blur=0.0, projection=8).task(encoder, 24, POOL)
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 1e-2)
    for step in range(60):
        loss = sum(task(make_batch(step=step)._replace(images=pictures)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step, 60)
    assert task.signals["accuracy"] > 0.6 > 4 * task.signals["chance"]
    assert task.signals["part_accuracy"] > 0.6


# --- with a decoder ------------------------------------------------------------------------------


@pytest.fixture
def run(write_pairs: Callable[..., Path], tmp_path: Path) -> Path:
    pool = write_pairs(4, name="pool") / "images"
    arguments = ["--images", str(pool), "--pretext", "densecl", "--with-decoder", "unet"]
    arguments += ["--encoder", "resnet18", "--size", "32", "--steps", "1", "--batch-size", "2"]
    settings = cli.parse("pretrain", [*arguments, "--out", str(tmp_path / "run")])
    fewmask.pretrain(**vars(settings))
    return tmp_path / "run"


def settings_of(run: Path, **changes: object) -> FinetuneSettings:
    settings = FinetuneSettings(
        pairs="pairs", out="out", init=str(run), encoder="resnet18", decoder="unet", size=32
    )
    return replace(settings.resolved(), **changes)  # type: ignore[arg-type]


def test_encoder_and_decoder_are_pre_trained_and_both_are_loaded(run: Path) -> None:
    lines: list[str] = []
    segmenter, _ = start_model(settings_of(run), LABELS, lines.append)
    saved = load_file(run / "decoder.safetensors")
    own = segmenter.network.decoder.state_dict()
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in saved)
    scratch, _ = start_model(settings_of(run, init="scratch"), LABELS)
    fresh = scratch.network.decoder.state_dict()
    assert not any(torch.equal(fresh[n], own[n]) for n in own if n.endswith("0.weight"))
    count = sum(not name.endswith("num_batches_tracked") for name in saved)
    assert lines == [f"loaded {count} decoder tensors, all there are, from {run}"]

    # Its content is part of what a run or a cell starts from.
    both, alone = start_key(str(run), None, "resnet18"), str(run / "encoder.safetensors")
    assert both != start_key(alone, None, "resnet18")
    name = next(iter(saved))
    save_file({**saved, name: saved[name] + 1}, run / "decoder.safetensors")
    assert start_key(str(run), None, "resnet18") != both

    # Of the same name but of other tensors: no half-loaded model.
    save_file({k: v for k, v in saved.items() if k != name}, run / "decoder.safetensors")
    with pytest.raises(UserError, match=rf"decoder\.safetensors: doesn't fit.*{name}"):
        start_model(settings_of(run), LABELS)
    start_model(settings_of(run, init=alone), LABELS)


def test_another_decoder_starts_from_the_encoder_alone(
    run: Path, write_pairs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = fewmask.finetune(
        pairs=str(write_pairs(4)),
        out=str(run.with_name("fine")),
        init=str(run),
        encoder="resnet18",
        decoder="fpn",
        size=32,
        steps=1,
        batch_size=2,
    )
    assert result.transfer is not None
    assert result.transfer.tensors == result.transfer.of_tensors
    assert (
        "(unet); --decoder fpn is another, so only the encoder is used" in capsys.readouterr().err
    )


def test_a_run_without_a_decoder_keeps_its_key(run: Path) -> None:
    (run / "decoder.safetensors").unlink()
    alone = str(run / "encoder.safetensors")
    assert start_key(str(run), None, "resnet18") == start_key(alone, None, "resnet18")
    lines: list[str] = []
    start_model(settings_of(run), LABELS, lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("resnet34", "unet"), ("resnet50", "fpn"), ("vgg11", "unet"), ("convnext_atto", "fpn")],
)
def test_the_decoder_is_the_one_that_fine_tuning_builds(encoder: str, decoder: str) -> None:
    own, _ = decoder_for(encoders.build(encoder), decoder, 64)
    network = decoders.build(decoder, encoder, 1)
    shapes = [
        {name: tensor.shape for name, tensor in module.state_dict().items()}
        for module in (own, network.get_submodule("decoder"))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("decoder", ["deeplabv3plus", "pspnet", "fcn8s"])
def test_decoders_that_take_other_maps_are_refused(decoder: str) -> None:
    with pytest.raises(UserError, match=f"--with-decoder {decoder}.*expected unet"):
        DenseCL(with_decoder=decoder).task(encoders.build("resnet18"), 64, POOL)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="unknown decoder unett; near: unet"):
        DenseCL(with_decoder="unett")
    with pytest.raises(UserError, match="--with-decoder: goes with smp's"):
        DenseCL(with_decoder="unet").task(GroupNormEncoder(), 24, POOL)
    with pytest.raises(UserError, match="--dense-weight 2"):
        DenseCL(dense_weight=2.0)
    with pytest.raises(UserError, match="--temperature 0"):
        DenseCL(temperature=0.0)
    with pytest.raises(UserError, match="--momentum 1"):
        DenseCL(momentum=1.0)
    with pytest.raises(UserError, match="--queue 0"):
        DenseCL(queue=0)
