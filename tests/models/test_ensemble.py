import pytest
import torch

from emnist_dali.config import Model
from emnist_dali.models.build import build_model
from emnist_dali.models.ensemble import Ensemble

IMAGES = torch.randn((7, 1, 24, 24), generator=torch.Generator().manual_seed(0))


class Linear(torch.nn.Linear):
    num_classes = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1))


@pytest.fixture
def ensemble() -> Ensemble:
    torch.manual_seed(0)
    return Ensemble([Linear(576, 3) for _ in range(2)])


def test_its_probabilities_are_the_mean_of_the_members(ensemble):
    members = [member(IMAGES).softmax(-1) for member in ensemble.members]
    torch.testing.assert_close(ensemble.eval()(IMAGES).softmax(-1), sum(members) / 2)
    torch.testing.assert_close(ensemble(IMAGES).exp().sum(-1), torch.ones(7))


def test_in_training_each_member_learns_from_its_share_alone(ensemble):
    first, second = ensemble.members
    logits = ensemble.train()(IMAGES)
    torch.testing.assert_close(logits, torch.cat([first(IMAGES[:4]), second(IMAGES[4:])]))
    logits[:4].square().sum().backward()
    assert first.weight.grad.any()
    assert second.weight.grad is None or not second.weight.grad.any()


def test_members_start_apart_and_share_what_is_set_for_the_stem():
    net = build_model(Model(model="emnist_fast_trio", pretrained=False, stem_stride=1), 5)
    stems = [member.stem[0] for member in net.members]
    assert [stem.stride for stem in stems] == [(1, 1)] * 3
    assert not torch.equal(stems[0].weight, stems[1].weight)


def test_all_members_take_the_weights_of_a_file_for_other_classes(tmp_path):
    saved = build_model(Model(model="emnist_fast_trio", pretrained=False), 47)
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    loaded = build_model(Model(model="emnist_fast_trio", weights=str(tmp_path / "weights.pth")), 5)
    assert loaded(IMAGES).shape == (7, 5)
    for old, new in zip(saved.members, loaded.members, strict=True):
        assert torch.equal(old.stem[0].weight, new.stem[0].weight)
        assert torch.equal(old.hidden[0].weight, new.hidden[0].weight)
