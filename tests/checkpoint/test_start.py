from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from fewmask import encoders
from fewmask.checkpoint import (
    DEFAULT,
    encoder_of,
    load_decoder,
    load_start,
    save_weights,
    start_file,
    start_key,
    told_by,
    warnings_of,
)
from fewmask.encoders import build
from fewmask.files import write_json_atomic
from fewmask.sealed import write_sealed_toml
from fewmask.types import UserError

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARED = Path(os.environ.get("FEWMASK_DATA", BESIDE)).resolve()
DENSENET = SHARED.parent / "weights" / "densenet121_imagenet.safetensors"
NAME = "resnet10t"


def same(encoder: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def start(where: object, **more: object) -> tuple[nn.Module, object]:
    encoder = build(NAME)
    return encoder, load_start(encoder, str(where), name=NAME, **more)  # type: ignore[arg-type]


def test_scratch_changes_nothing() -> None:
    encoder = build(NAME)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert load_start(encoder, "scratch", name=NAME) is None
    assert same(encoder, before)


def test_imagenet_is_timms_download(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model(NAME)
    monkeypatch.setattr(encoders, "imagenet_state", {NAME: dict(model.state_dict())}.get)
    encoder, done = start("imagenet")
    assert same(encoder, {f"model.{k}": v for k, v in model.state_dict().items()})
    assert done.source == f"ImageNet ({NAME})"  # type: ignore[attr-defined]
    assert done.unused == 2  # type: ignore[attr-defined]


def test_imagenet_from_a_file(tmp_path: Path) -> None:
    model = timm.create_model(NAME)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    encoder, done = start("imagenet", weights=str(tmp_path / "w.pth"))
    assert same(encoder, {f"model.{k}": v for k, v in model.state_dict().items()})
    assert done.source == f"ImageNet ({tmp_path / 'w.pth'})"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"w.pt: no such file; near: w.pth"):
        start("imagenet", weights=str(tmp_path / "w.pt"))


@pytest.mark.parametrize("where", ["scratch", "run"])
def test_weights_go_with_imagenet_only(where: str) -> None:
    with pytest.raises(UserError, match=f"--weights w.pth goes with .* not with --init {where}"):
        start(where, weights="w.pth")


def test_runs_of_both_kinds(tmp_path: Path) -> None:
    source, network = build(NAME), smp.Unet(f"tu-{NAME}", encoder_weights=None)
    for folder, file, state in (
        ("pretrained", "encoder.safetensors", source.state_dict()),
        ("finetuned", "model.safetensors", network.state_dict()),
    ):
        run = tmp_path / folder
        save_weights(run / file, state, {})
        write_json_atomic(run / "result.json", {"moved": 0.25})
        for where in (run, f"{run}{os.sep}", run / file):
            encoder, done = start(where)
            wanted = source if folder == "pretrained" else network.encoder
            assert same(encoder, wanted.state_dict())
            assert done.moved == 0.25  # type: ignore[attr-defined]
            named = run / file if where == run / file else run
            assert done.source == str(named)  # type: ignore[attr-defined]


def test_a_run_without_a_result_says_nothing_of_moving(tmp_path: Path) -> None:
    save_weights(tmp_path / "encoder.safetensors", build(NAME).state_dict(), {})
    assert start(tmp_path)[1].moved is None  # type: ignore[attr-defined]
    (tmp_path / "result.json").write_text("{")
    assert start(tmp_path)[1].moved is None  # type: ignore[attr-defined]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    save_weights(tmp_path / "runs" / "one" / "encoder.safetensors", {"w": torch.ones(1)}, {})
    neither = "holds neither encoder.safetensors nor model.safetensors"
    with pytest.raises(UserError, match=f"{neither}, so it is no run folder$"):
        start(tmp_path)
    with pytest.raises(UserError, match=f"{neither}.*the runs .*one lie in it"):
        start(tmp_path / "runs")
    (tmp_path / "config.toml").write_text('pretext = "simclr"\n')
    with pytest.raises(UserError, match=f"{neither}: a run that is not finished"):
        start(tmp_path)
    (tmp_path / "config.toml").write_text("broken [")
    with pytest.raises(UserError, match=rf"{neither}; .*config\.toml: damaged"):
        start(tmp_path)


def test_a_start_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--init imagnet: no such .*; near: imagenet"):
        start("imagnet")
    (tmp_path / "simclr").mkdir()
    with pytest.raises(UserError, match=r"--init .*simcrl: no such .*; near: .*simclr"):
        start(tmp_path / "simcrl")
    with pytest.raises(UserError, match="no such file or folder"):
        start(tmp_path / "no" / "where")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: is no plain file\. Name a run folder or a weights"):
        start(tmp_path / "pipe")


@pytest.mark.skipif(not DENSENET.is_file(), reason="the shared weights are not here")
def test_real_imagenet_weights_give_the_same_features() -> None:
    from safetensors.torch import load_file

    model, encoder = timm.create_model("densenet121"), build("densenet121")
    done = load_start(encoder, "imagenet", name="densenet121", weights=str(DENSENET))
    model.load_state_dict(load_file(DENSENET))
    assert done is not None
    assert done.tensors == done.of_tensors == 604
    assert done.parameter_share == 1
    assert done.unused == 2
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = encoder.eval()(images)[-1].relu()  # smp ends before the last ReLU
        torch.testing.assert_close(found, model.eval().forward_features(images))


def test_the_encoder_is_the_start_s_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text('encoder = "resnet18"\nsize = 96\n')
    assert told_by(str(run)) == {}  # no weights: some other program's folder, perhaps
    save_weights(run / "encoder.safetensors", {"a": torch.ones(1)}, {})
    assert encoder_of("auto", str(run)) == "resnet18"
    assert encoder_of("vgg11", str(run)) == "vgg11"
    monkeypatch.chdir(tmp_path)
    for name in ("scratch", "imagenet"):  # the word, whatever lies in such a folder
        save_weights(Path(name) / "encoder.safetensors", {"a": torch.ones(1)}, {})
        (tmp_path / name / "config.toml").write_text('encoder = "vgg11"')
        assert encoder_of("auto", name) == DEFAULT
    assert told_by(str(run)) == {"encoder": "resnet18", "size": 96}
    (run / "config.toml").write_text("broken [")
    with pytest.raises(UserError, match=r"config\.toml: damaged .*Bring the file back"):
        encoder_of("auto", str(run))
    save_weights(tmp_path / "w.safetensors", {"a": torch.ones(1)}, {"encoder": "vgg11"})
    assert encoder_of("auto", str(tmp_path / "w.safetensors")) == "vgg11"
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    assert told_by(str(tmp_path / "torn.safetensors")) == {}
    (run / "config.toml").write_text('encoder = "vgg11"\nresize = "stretch"\nseed = 3\n')
    assert told_by(str(run)) == {"encoder": "vgg11", "resize": "stretch"}
    save_weights(tmp_path / "unsaid.safetensors", {"a": torch.ones(1)}, {})
    assert told_by(str(tmp_path / "unsaid.safetensors")) == {}
    assert told_by(str(run.rename(tmp_path / "run.safetensors")))["encoder"] == "vgg11"


UNREAD = ["its result.json can't be read: what it warned of is not known"]
CHANGED = "its result.json was changed since it was written"


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ('{"warnings": ["collapsed", 3]}', ["collapsed", "3"]),
        ("{}", []),
        ("[]", UNREAD),
        ('{"warnings": 3}', UNREAD),
        ("{", UNREAD),
        ('{"warnings": ["collapsed"], "checksum": "0"}', ["collapsed", CHANGED]),
        (None, []),
    ],
)
def test_warnings_are_those_of_the_run(
    text: str | None, warnings: list[str], tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert warnings_of(str(tmp_path)) == warnings


def faults_of(call: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        call()
    return caught.value.faults


def test_a_start_of_another_encoder_says_which(tmp_path: Path) -> None:
    save_weights(tmp_path / "encoder.safetensors", {"w": torch.ones(1)}, {})
    (plain,) = faults_of(lambda: start(tmp_path))
    assert plain.startswith(f"--encoder {NAME}: {tmp_path}: fits 0 of ")
    assert plain.endswith("Choose the --encoder that it was made with")
    (tmp_path / "config.toml").write_text(f'encoder = "{NAME}"')
    assert faults_of(lambda: start(tmp_path)) == (plain,)
    (tmp_path / "config.toml").write_text('encoder = "vgg11"')
    hint = f". {tmp_path} is a vgg11: pass --encoder vgg11"
    assert faults_of(lambda: start(tmp_path)) == (plain + hint,)
    (tmp_path / "config.toml").write_text("broken [")
    assert faults_of(lambda: start(tmp_path)) == (plain,)


def test_part_of_an_encoder_is_loaded_where_allowed(tmp_path: Path) -> None:
    state = {k: v for k, v in build(NAME).state_dict().items() if "layer4" not in k}
    save_weights(tmp_path / "w.safetensors", state, {})
    (fault,) = faults_of(lambda: start(tmp_path / "w.safetensors"))
    assert fault.endswith(", or pass --allow-partial to load what fits")
    _, done = start(tmp_path / "w.safetensors", allow_partial=True)
    assert done.tensors < done.of_tensors  # type: ignore[attr-defined]


def test_where_there_is_no_start_what_lies_near_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "Expected scratch, imagenet, a run folder or a weights file"
    told = f"--init scrtch: no such file or folder; near: scratch. {expected}"
    assert faults_of(lambda: start_file("scrtch")) == (told,)
    nowhere = tmp_path / "no" / "1234567"
    told = f"--init {nowhere}: no such file or folder. {expected}"
    assert faults_of(lambda: start_file(str(nowhere))) == (told,)
    neither = f"--init {tmp_path}: holds neither encoder.safetensors nor model.safetensors"
    assert faults_of(lambda: start_file(str(tmp_path))) == (f"{neither}, so it is no run folder",)
    runs = [tmp_path / name for name in ("b", "cells/a", "encoders/c", "x")]
    for run in (*runs, tmp_path / "below" / "of" / "all"):
        save_weights(run / "model.safetensors", {"w": torch.ones(1)}, {})
    named = ", ".join(str(run) for run in runs[:3])
    told = f"{neither}, so it is no run folder; the runs {named} lie in it"
    assert faults_of(lambda: start_file(str(tmp_path))) == (told,)
    (tmp_path / "config.toml").write_text('pretext = "simclr"\n')
    told = f"{neither}: a run that is not finished. Run its command again to finish it"
    assert faults_of(lambda: start_file(str(tmp_path))) == (told,)


def test_of_both_weights_in_a_folder_the_encoder_s_are_taken(tmp_path: Path) -> None:
    for name in ("model.safetensors", "encoder.safetensors"):
        (tmp_path / name).write_text("")
        assert start_file(str(tmp_path)) == tmp_path / name


def test_a_start_s_key_is_of_the_bytes_that_are_loaded(tmp_path: Path) -> None:
    """For good: what was kept under it is found again."""
    run, file = tmp_path / "run", tmp_path / "w.safetensors"
    run.mkdir()
    first, second = bytes(range(256)) * 4097, b"decoder"  # more than is read at once
    for path in (run / "encoder.safetensors", file):
        path.write_bytes(first)
    key = blake2b(first, digest_size=10).hexdigest()
    for where, weights in ((run, None), (file, None), ("imagenet", str(file))):
        assert start_key(str(where), weights, NAME) == key
    (run / "decoder.safetensors").write_bytes(second)
    both = blake2b(first + second, digest_size=10).hexdigest()
    assert start_key(str(run), None, NAME) == both
    assert start_key("scratch", None, NAME) == f"scratch/{NAME}"
    assert start_key("imagenet", None, NAME) == f"imagenet/{NAME}"


def test_weights_with_another_start_are_a_mistake_of_its_key_too() -> None:
    told = "--weights w.pth goes with --init imagenet only, not with --init scratch. "
    mend = "Pass --init w.pth to start from that file"
    assert faults_of(lambda: start_key("scratch", "w.pth", NAME)) == (told + mend,)
    assert faults_of(lambda: start("scratch", weights="w.pth")) == (told + mend,)


def decoder_run(folder: Path, state: dict[str, Tensor], config: str | None) -> str:
    save_weights(folder / "decoder.safetensors", state, {})
    if config is not None:
        (folder / "config.toml").write_text(config)
    return str(folder)


def segmenter() -> nn.Module:
    """A network with a decoder of five tensors and a counter."""
    decoder = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))
    return nn.ModuleDict({"encoder": nn.Conv2d(3, 2, 1), "decoder": decoder})


def twos(network: nn.Module) -> dict[str, Tensor]:
    """A state of its decoder."""
    own = network.get_submodule("decoder").state_dict()
    return {name: torch.full_like(tensor, 2) for name, tensor in own.items()}


def test_a_pre_trained_decoder_is_loaded_whole(tmp_path: Path) -> None:
    state = twos(segmenter())
    run = decoder_run(tmp_path, state, 'with_decoder = "unet"')
    network = segmenter()
    told = f"loaded 5 decoder tensors, all there are, from {run}"
    assert load_decoder(network, run, "unet") == told
    found = network.get_submodule("decoder").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    state["1.bias"][1] = torch.inf
    decoder_run(tmp_path, state, None)
    assert faults_of(lambda: load_decoder(network, run, "unet")) == (
        f"{tmp_path / 'decoder.safetensors'}: 1.bias holds values that are not finite. "
        "The run that made it diverged, or half precision was too narrow for it",
    )


def test_a_decoder_of_another_name_is_left_out_and_said(tmp_path: Path) -> None:
    network = segmenter()
    assert load_decoder(network, str(tmp_path), "unet") is None
    state = twos(network)
    for config, held in (
        (None, "of an unknown name"),
        ("seed = 0", "of an unknown name"),
        ('with_decoder = "fpn"', "fpn"),
    ):
        run = decoder_run(tmp_path, state, config)
        assert load_decoder(network, run, "unet") == (
            f"{run} also holds a pre-trained decoder ({held}); --decoder unet is another, "
            "so only the encoder is used"
        )
    assert not (network.get_parameter("decoder.1.weight") == 2).any()
    write_sealed_toml(tmp_path / "config.toml", {"with_decoder": "fpn"})
    text = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace("fpn", "unet"))
    (fault,) = faults_of(lambda: load_decoder(network, run, "unet"))
    assert "config.toml: changed since it was written" in fault


def test_a_decoder_that_does_not_fit_is_refused_with_the_mend(tmp_path: Path) -> None:
    network = segmenter()
    state = network.get_submodule("decoder").state_dict()
    state["0.weight"] = torch.ones(3, 2, 3, 3)
    del state["1.running_mean"]
    run = decoder_run(tmp_path, {**state, "2.bias": torch.ones(1)}, 'with_decoder = "unet"')

    def told(names: str) -> str:
        return (
            f"{tmp_path / 'decoder.safetensors'}: doesn't fit --decoder unet with these options: "
            f"{names} are missing, left over or of another shape. Choose the decoder's default "
            f"options, or --init {tmp_path / 'encoder.safetensors'} to start from the encoder alone"
        )

    refused = faults_of(lambda: load_decoder(network, run, "unet"))
    assert refused == (told("0.weight, 1.running_mean, 2.bias"),)
    decoder_run(tmp_path, {**state, "2.bias": torch.ones(1), "1.a": torch.ones(1)}, None)
    refused = faults_of(lambda: load_decoder(network, run, "unet"))
    assert refused == (told("0.weight, 1.a, 1.running_mean"),)


@pytest.mark.parametrize("result", [None, "{}"])
def test_a_folder_of_another_command_is_no_unfinished_run(
    result: str | None, tmp_path: Path
) -> None:
    """What predict leaves; and a finished run whose weights were taken away."""
    (tmp_path / "config.toml").write_text('run = "x"\n' if result is None else 'decoder = "y"\n')
    if result is not None:
        (tmp_path / "result.json").write_text(result)
    told = (
        r"no encoder\. Name the folder of a fewmask pretrain or finetune$"
        if result is None
        else "whose weights are gone"
    )
    with pytest.raises(UserError, match=told):
        start(str(tmp_path))
    (tmp_path / "result.json").unlink(missing_ok=True)
    (tmp_path / "config.toml").write_text('decoder = "y"\n')
    with pytest.raises(UserError, match="not finished"):
        start(str(tmp_path))


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    with pytest.raises(UserError, match=r"w\.pth: is no weights file \(it is empty\)"):
        start(str(tmp_path / "w.pth"))
