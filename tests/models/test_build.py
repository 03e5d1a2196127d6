import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from emnist_dali.config import Model
from emnist_dali.core.errors import UserError
from emnist_dali.models import build
from emnist_dali.models.build import build_model, channels_last

NAME = "test_efficientnet"
STEM = "conv_stem.weight"


def untrained(classes: int = 10, **options) -> torch.nn.Module:
    return build_model(Model(model=NAME, pretrained=False, **options), classes)


def refused(config: Model) -> str:
    with pytest.raises(UserError) as caught:
        build_model(config, 10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def rgb() -> torch.nn.Module:
    """A model with 3 channels and 1,000 classes that plays the pretrained one."""
    torch.manual_seed(3)
    return timm.create_model(NAME)


@pytest.fixture(scope="module")
def weights(rgb, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "rgb.safetensors"
    save_file(rgb.state_dict(), path)
    return str(path)


def test_one_channel_in_and_one_logit_per_class_out():
    net = untrained(classes=7).eval()
    assert net.conv_stem.in_channels == 1
    assert net(torch.zeros(3, 1, 32, 32)).shape == (3, 7)


def test_the_stem_keeps_its_stride_by_default():
    images = torch.zeros(1, 1, 32, 32)
    for options, side in (({}, 16), ({"stem_stride": 1}, 32), ({"stem_stride": 2}, 16)):
        assert untrained(**options).conv_stem(images).shape[-2:] == (side, side)


def test_weights_and_activations_are_channels_last():
    net = untrained().eval()
    kernels = [parameter for parameter in net.parameters() if parameter.ndim == 4]
    assert len(kernels) > 10
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    stem = net.conv_stem(channels_last(torch.randn(2, 1, 32, 32)))
    assert stem.is_contiguous(memory_format=torch.channels_last)
    assert not stem.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_channels_last_is_a_view_with_channels_last_strides(dtype):
    images = torch.randn(4, 1, 6, 8).to(dtype)
    view = channels_last(images)
    assert view.stride() == (48, 1, 8, 1)
    assert view.data_ptr() == images.data_ptr()
    assert torch.equal(view, images)
    images[3, 0, 5, 7] = 99
    assert view[3, 0, 5, 7] == 99


def test_local_weights_fold_the_stem_and_keep_the_rest(rgb, weights):
    net = build_model(Model(model=NAME, weights=weights), 10)
    theirs, ours = rgb.state_dict(), net.state_dict()
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours[STEM], theirs[STEM].sum(1, keepdim=True))
    assert net.classifier.out_features == 10
    for name in ours.keys() - {STEM, "classifier.weight", "classifier.bias"}:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_folded_stem_matches_the_rgb_model_on_grey_images(rgb, weights):
    net = build_model(Model(model=NAME, weights=weights), 1_000)
    images = torch.randn((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(images), rgb.eval()(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_a_new_stem_differs_only_in_the_stem(weights):
    folded = build_model(Model(model=NAME, weights=weights), 1_000).state_dict()
    new = build_model(Model(model=NAME, weights=weights, stem="new"), 1_000).state_dict()
    assert [name for name in folded if not torch.equal(folded[name], new[name])] == [STEM]
    assert new[STEM].std() > 0


def test_torch_seed_decides_untrained_weights():
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(untrained().state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    assert not torch.equal(nets[0][STEM], nets[2][STEM])


def test_an_unknown_name_suggests_similar_ones():
    message = refused(Model(model="test_efficient", pretrained=False))
    assert "'test_efficient'" in message
    assert NAME in message
    message = refused(Model(model="no such model", pretrained=False))
    assert "'no such model'" in message
    assert "model.model" in message


def test_missing_weights(tmp_path):
    path = tmp_path / "none.safetensors"
    message = refused(Model(model=NAME, weights=str(path)))
    assert str(path) in message
    assert "model.weights" in message
    assert str(tmp_path) in refused(Model(model=NAME, weights=str(tmp_path)))


@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors", "npz"])
@pytest.mark.parametrize("content", [b"", b"These are not weights but a line of text."], ids=["empty", "text"])
def test_a_file_without_weights(tmp_path, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    message = refused(Model(model=NAME, weights=str(path)))
    assert f"{path} does not hold weights of {NAME}" in message


def test_weights_of_another_model(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    assert f"{path} does not hold weights of {NAME}" in refused(Model(model=NAME, weights=str(path)))


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_both_alternatives_are_named_at_once(tmp_path, monkeypatch, offline):
    lookups = []

    def no_network(host, *_, **__):
        lookups.append(host)
        raise OSError("a test must not use the network")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr(build, "reachable", lambda url: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    message = refused(Model(model=NAME))
    assert NAME in message
    assert "model.weights" in message
    assert "model.pretrained" in message
    assert constants.HF_HUB_OFFLINE is offline
    assert lookups == []  # no retries, which take 47 s


def test_an_unreachable_hub_is_detected(monkeypatch):
    import requests

    def fail(*_, **options):
        assert options["timeout"] <= 10
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", fail)
    assert not build.reachable("https://hub.invalid")
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    assert build.reachable("https://hub.invalid")


@pytest.mark.parametrize(
    ("name", "size"), [("test_vit", 32), ("test_maxvit", 32), ("swin_tiny_patch4_window7_224", 28)]
)
def test_a_model_for_one_size_is_made_for_ours(name, size):
    net = build_model(Model(model=name, pretrained=False), 10, size).eval()
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 10)


def test_pretrained_weights_of_another_size_are_adapted(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit")  # for 160×160
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    net = build_model(Model(model="test_vit", weights=str(tmp_path / "vit.safetensors")), 10, 32)
    assert torch.equal(net.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)
    assert net.pos_embed.shape[1] < theirs.pos_embed.shape[1]
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("size", "fits"), [(28, "16 or 32"), (15, "16"), (33, "32 or 48")])
def test_a_size_that_is_cut_off_is_refused(size, fits):
    """timm would leave out the border of 28×28 in patches of 16×16."""
    with pytest.raises(UserError, match=rf"multiple of 16; set data\.image_size {fits}\."):
        build_model(Model(model="test_vit", pretrained=False), 10, size)


def head_after(file: str, classes: int, **options) -> torch.Tensor:
    torch.manual_seed(1)
    return build_model(Model(model=NAME, weights=file, **options), classes).classifier.weight


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> tuple[str, torch.Tensor]:
    """Weights for 12 classes, in the form of a run folder."""
    torch.manual_seed(0)
    net, folder = untrained(12), tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    weights = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(weights, folder / "checkpoints" / "best.safetensors")
    return str(folder), net.classifier.weight


def test_a_head_is_kept_where_it_fits(twelve):
    file, theirs = twelve
    assert torch.equal(head_after(file, 12), theirs)
    assert head_after(file, 11).shape == (11, theirs.shape[1])
    new = head_after(file, 12, head="new")
    assert new.shape == theirs.shape
    assert not torch.equal(new, theirs)
