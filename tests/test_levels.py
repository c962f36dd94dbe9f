"What the chapter on noise levels claims: one guess, told in three languages, is one weighted loss."

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr

from tune_a_video_nbs.ddpm import PREDICTION_TYPES, q_sample, snr, target
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.levels import LEVELS, level_weights, weigh_levels

FOUR = torch.tensor([0.99, 0.9, 0.5, 0.01], dtype=torch.float64)  # SNR 99, 9, 1 and 1/99


@pytest.mark.parametrize(
    "prediction_type, kind, want",
    [
        ("epsilon", "min_snr", [5 / 99, 5 / 9, 1, 1]),
        ("sample", "min_snr", [5, 5, 1, 1 / 99]),
        ("v_prediction", "min_snr", [5 / 100, 5 / 10, 1 / 2, 1 / 100]),
        ("epsilon", "clean_data", [1 / 99, 1 / 9, 1, 60]),
        ("sample", "clean_data", [1, 1, 1, 60 / 99]),
        ("v_prediction", "clean_data", [1 / 100, 1 / 10, 1 / 2, 60 / 100]),
        ("epsilon", "uniform", [1, 1, 1, 1]),
        ("sample", "uniform", [1, 1, 1, 1]),
        ("v_prediction", "uniform", [1, 1, 1, 1]),
    ],
)
def test_weights_by_hand(prediction_type, kind, want):
    want = torch.tensor(want, dtype=torch.float64)
    torch.testing.assert_close(level_weights(FOUR, prediction_type, kind), want)


def errors_of_one_guess(abar):
    "The squared error of one guess of the clean data, at each level, in the words of each prediction type."
    g = torch.Generator().manual_seed(1)
    x0, guess, noise = torch.randn(3, len(abar), 50, generator=g, dtype=torch.float64)
    t = torch.arange(len(abar))
    x_t = q_sample(x0, t, noise, abar)
    guessed_noise = (x_t - abar.sqrt()[:, None] * guess) / (1 - abar).sqrt()[:, None]
    errors = {}
    for prediction_type in PREDICTION_TYPES:
        told = target(guess, t, guessed_noise, abar, prediction_type)
        errors[prediction_type] = (told - target(x0, t, noise, abar, prediction_type)).square().mean(1)
    return errors


@pytest.mark.parametrize("settings", [dict(), dict(cap=3.0, gamma=0.5), dict(cap=0.2, gamma=50.0)])
@pytest.mark.parametrize("kind", ["min_snr", "clean_data"])
def test_one_guess_in_three_languages_is_one_loss(kind, settings):
    abar = torch.cat([FOUR, DDIMScheduler().alphas_cumprod.double()[::50]])
    errors = errors_of_one_guess(abar)
    losses = [level_weights(abar, k, kind, **settings) * errors[k] for k in PREDICTION_TYPES]
    for loss in losses:
        torch.testing.assert_close(loss, losses[0])
    assert not torch.allclose(losses[0], errors["epsilon"])


def test_without_a_cap_it_is_the_error_in_clean_data():
    errors = errors_of_one_guess(FOUR)
    for prediction_type in PREDICTION_TYPES:
        weights = level_weights(FOUR, prediction_type, "clean_data", cap=float("inf"))
        torch.testing.assert_close(weights * errors[prediction_type], errors["sample"])
    assert not torch.allclose(
        level_weights(FOUR, "epsilon", "clean_data") * errors["epsilon"], errors["sample"]
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_as_diffusers_scripts_compute_it(kind):
    scheduler = DDIMScheduler()
    ratio = compute_snr(scheduler, torch.arange(1000))
    torch.testing.assert_close(snr(scheduler.alphas_cumprod), ratio, rtol=1e-3, atol=0)
    theirs = ratio.clamp(max=5.0) / (ratio if kind == "epsilon" else ratio + 1)  # train_text_to_image.py
    ours = level_weights(scheduler.alphas_cumprod, kind, "min_snr")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("kind", LEVELS)
def test_without_any_signal_weights_are_numbers(kind, prediction_type):
    "Schedules rescaled to zero terminal SNR end so."
    weights = level_weights(torch.tensor([0.5, 0.0]), prediction_type, kind)
    assert weights.isfinite().all()
    last = dict(uniform=1, min_snr=1, clean_data=60)[kind] if prediction_type == "epsilon" else None
    assert last is None or weights[1] == last


def test_what_cannot_be_is_refused():
    for wrong, message in (
        (dict(prediction_type="velocity"), "prediction_type is 'velocity'"),
        (dict(kind="snr"), "weighed by 'snr'"),
        (dict(gamma=0.0), "gamma is 0.0"),
        (dict(cap=float("nan")), "cap is nan"),
    ):
        with pytest.raises(InputError, match=message):
            level_weights(FOUR, **wrong)
    with pytest.raises(InputError, match="give one"):
        weigh_levels(DDIMScheduler(), "clean_data", min_snr=5.0)


def test_how_a_checkpoint_names_the_choice():
    scheduler = DDIMScheduler()
    assert [weigh_levels(scheduler, kind)[1] for kind in LEVELS] == [None, 5.0, "clean_data, cap=60"]
    assert weigh_levels(scheduler, min_snr=3)[1] == weigh_levels(scheduler, "min_snr", min_snr=3)[1] == 3
