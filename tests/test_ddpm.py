"What chapter 02 does not show: errors of the library, devices, and where the noise is drawn."

import pytest
import torch

from tune_a_video_nbs import ddpm
from tune_a_video_nbs.errors import InputError

ABAR = ddpm.alphas_cumprod(ddpm.linear_schedule())


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch():
    return torch.randn(2, 3, 4, generator=rng())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ddpm.alphas_cumprod(torch.tensor([0.5, 1.5])), "from 0.5 to 1.5"),
        (lambda x: ddpm.per_item(torch.ones(3), x), r"\(3,\)"),
        (lambda x: ddpm.check_steps(1000, x, 1000), "0 to 999"),
        (lambda x: ddpm.check_steps(0.5, x, 1000), "whole numbers"),
        (lambda x: ddpm.check_like(x[0], x), "shaped like the batch"),
        (lambda x: ddpm.q_sample(x, torch.tensor([0, -1]), x, ABAR), "from -1 to 0"),
        (lambda x: ddpm.target(x, 0, x, ABAR, "eps"), "'eps'"),
        (lambda x: ddpm.ddpm_step(x, 1, x, ABAR, x, "fixed"), "'fixed'"),
    ],
)
def test_refusals_are_the_librarys_own(call, message):
    with pytest.raises(InputError, match=message):
        call(batch())


def test_steps_on_the_cpu_never_wait_for_the_device_of_the_data():
    "The meta device has no values to wait for: a comparison there fails."
    x = torch.empty(2, 3, 4, device="meta")
    noise = torch.empty_like(x)
    for t in (5, torch.tensor(5), torch.tensor([5, 999])):
        assert ddpm.check_steps(t, x, 1000).device.type == "meta"
        assert ddpm.q_sample(x, t, noise, ABAR).shape == x.shape
        assert ddpm.ddpm_step(noise, t, x, ABAR, noise).shape == x.shape
        loss = ddpm.ddpm_loss(lambda x_t, t: x_t, x, t, noise, ABAR, "v_prediction")
        assert loss.shape == ()


def test_one_step_for_all_is_the_same_as_one_for_each():
    x = batch()
    noise = torch.randn(x.shape, generator=rng(1))
    each = torch.tensor([7, 7])
    assert torch.equal(ddpm.q_sample(x, 7, noise, ABAR), ddpm.q_sample(x, each, noise, ABAR))
    assert torch.equal(ddpm.ddpm_step(noise, 7, x, ABAR, x), ddpm.ddpm_step(noise, each, x, ABAR, x))


def test_the_sampler_draws_the_start_then_noise_for_every_step_but_the_last():
    abar = ABAR[:3]
    numbers = rng()
    x = torch.randn(4, 2, generator=numbers)
    for t in (2, 1):
        x = ddpm.ddpm_step(x / 2, t, x, abar, torch.randn(4, 2, generator=numbers))
    x = ddpm.ddpm_step(x / 2, 0, x, abar)
    visited = []
    got = ddpm.ddpm_sample(lambda x, t: x / 2, (4, 2), abar, rng(), lambda t, x: visited.append(t))
    assert torch.equal(got, x)
    assert visited == [2, 1, 0]


def test_conditions_reach_the_model():
    seen = []

    def model(x, t, words):
        seen.append((t.tolist(), words))
        return x

    ddpm.ddpm_sample(model, (2, 1), ABAR[:2], rng(), words="a star")
    x = batch()
    ddpm.ddpm_loss(model, x, 3, x, ABAR, words="a moon")
    assert seen == [([1, 1], "a star"), ([0, 0], "a star"), ([3, 3], "a moon")]
