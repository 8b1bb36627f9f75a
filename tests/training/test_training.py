"""The data order is a function of seed, epoch and step; a stopped training ends with the bits of one that was not."""

import dataclasses

import pytest
import torch

from terramoe.errors import ConfigError, DataError, ModelFileError, SplitError, TerraMoEError
from terramoe.storage import load_state, save_state
from terramoe.systems import system_class
from terramoe.training import SceneCrops, TrainSettings, batch_seed, fit
from terramoe.training.loop import learning_rate

MambaMoE = system_class("mambamoe")
SETTINGS = TrainSettings(steps=7, steps_per_epoch=3, batch=2, crop=16, save_every=2)


def make_crops(**changes):
    generator = torch.Generator().manual_seed(0)
    values = {
        "image": torch.randn(6, 30, 26, generator=generator),
        "valid": torch.rand(30, 26, generator=generator) > 0.1,
        "labels": torch.randint(-1, 3, (30, 26), generator=generator),
        "size": 16,
        "batch": 2,
        "seed": 0,
    }
    return SceneCrops(**{**values, **changes})


def make_system():
    torch.manual_seed(0)
    return MambaMoE.tiny()


def weights(system):
    return torch.cat([p.detach().flatten() for p in system.parameters()])


def same_batch(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_batch_depends_on_seed_epoch_step_and_process_alone():
    crops = make_crops()
    batch = crops.draw(2, 1)
    crops.draw(0, 0)
    torch.rand(5)
    assert same_batch(crops.draw(2, 1), batch)
    others = [crops.draw(2, 0), crops.draw(1, 1), crops.draw(2, 1, rank=1), make_crops(seed=1).draw(2, 1)]
    assert not any(same_batch(other, batch) for other in others)
    assert len({batch_seed(a, b) for a in range(30) for b in range(30)}) == 900


def test_crops_are_parts_of_the_scene_and_hold_a_labelled_pixel():
    crops = make_crops(flips=False)
    for step in range(20):
        batch = crops.draw(0, step)
        for image, mask in zip(batch["image"], batch["mask"], strict=True):
            assert (mask >= 0).any()
            places = (crops.image[0] == image[0, 0, 0]).nonzero()
            row, column = places[0].tolist()
            assert torch.equal(crops.image[:, row : row + 16, column : column + 16], image)


def test_flips_move_all_layers_together():
    position = torch.arange(30 * 26.0).reshape(30, 26)
    crops = make_crops(image=position.expand(6, -1, -1), labels=position.long())
    for step in range(8):
        batch = crops.draw(0, step)
        assert torch.equal(batch["image"][:, 0].long(), batch["mask"])


def test_balanced_crops_find_a_rare_class():
    labels = torch.zeros(30, 26, dtype=torch.int64)
    labels[29, 25] = 1
    found = sum(int((make_crops(labels=labels).draw(0, s)["mask"] == 1).any((1, 2)).sum()) for s in range(20))
    assert found >= 12  # half of 40 crops are drawn around it
    plain = make_crops(labels=labels, balanced=False)
    assert sum(int((plain.draw(0, s)["mask"] == 1).any((1, 2)).sum()) for s in range(20)) < found


def test_bad_crops():
    with pytest.raises(DataError, match="30 x 26 pixels, a crop 40 x 40"):
        make_crops(size=40)
    with pytest.raises(SplitError, match="no pixel is left"):
        make_crops(labels=torch.full((30, 26), -1))


def test_the_learning_rate_falls_to_zero():
    assert learning_rate(0, SETTINGS) == SETTINGS.learning_rate
    rates = [learning_rate(s, SETTINGS) for s in range(8)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0


def test_training_lowers_the_loss():
    labels = (torch.arange(26) // 9).expand(30, -1)
    crops = make_crops(labels=labels, image=torch.nn.functional.one_hot(labels, 6).permute(2, 0, 1).float())
    torch.manual_seed(0)
    system = MambaMoE(dataclasses.replace(MambaMoE.tiny().config, uncertainty_sampling=False))
    history = fit(system, crops, dataclasses.replace(SETTINGS, steps=60, steps_per_epoch=20, learning_rate=1e-2))
    first, *_, last = (sum(losses.values()) for losses in history.losses)
    assert last < 0.7 * first


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, stop):
    whole, path = make_system(), tmp_path / "state.safetensors"
    expected = fit(whole, make_crops(), SETTINGS)

    class Stop(Exception):
        pass

    def interrupt(done, loss):
        if done == stop:
            raise Stop

    with pytest.raises(Stop):
        fit(make_system(), make_crops(), SETTINGS, state_path=path, on_step=interrupt)
    resumed, seen = make_system(), []
    history = fit(resumed, make_crops(), SETTINGS, state_path=path, on_step=lambda done, loss: seen.append(done))
    assert torch.equal(weights(resumed), weights(whole))
    assert history.losses == expected.losses
    saved_before_the_stop = (stop - 1) // 2 * 2
    assert seen[0] == saved_before_the_stop + 1


def test_a_finished_training_is_not_repeated(tmp_path):
    path, whole = tmp_path / "s.safetensors", make_system()
    fit(whole, make_crops(), SETTINGS, state_path=path)
    again, seen = make_system(), []
    fit(again, make_crops(), SETTINGS, state_path=path, on_step=lambda done, loss: seen.append(done))
    assert seen == []
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize(
    ("change", "named"), [({"settings": {"learning_rate": 0.5}}, "settings"), ({"fingerprint": "other"}, "data")]
)
def test_a_state_of_another_run_is_refused(tmp_path, change, named):
    path = tmp_path / "s.safetensors"
    fit(make_system(), make_crops(), SETTINGS, state_path=path, fingerprint="data")
    settings = dataclasses.replace(SETTINGS, **change.get("settings", {}))
    with pytest.raises(ModelFileError, match=f"made with other {named}"):
        fit(make_system(), make_crops(), settings, state_path=path, fingerprint=change.get("fingerprint", "data"))


def test_a_state_with_other_weights_is_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    fit(make_system(), make_crops(), SETTINGS, state_path=path)
    tensors, meta = load_state(path)
    tensors.pop("model.blocks.0.scale_moe")
    save_state(path, tensors, meta)
    with pytest.raises(ModelFileError, match="belongs to another network"):
        fit(make_system(), make_crops(), SETTINGS, state_path=path)


def test_a_loss_that_explodes_is_our_error():
    crops = make_crops(image=torch.full((6, 30, 26), 3e38))
    with pytest.raises(TerraMoEError, match="NaN logits.*lower the learning rate"):
        fit(make_system(), crops, SETTINGS)


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"crop": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"seed": -1}]
)
def test_bad_settings(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TrainSettings(**bad)
