"What chapter 03 does not show: the steps that sampling and inversion share, and errors of the library."

import pytest
import torch
from diffusers import DDIMScheduler

from tune_a_video_nbs import ddim, ddpm
from tune_a_video_nbs.errors import InputError

ABAR = ddpm.alphas_cumprod(ddpm.scaled_linear_schedule())


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def model(x, t):
    return torch.tanh(x.roll(1, -1)) + 0.001 * ddpm.per_item(t, x)


@pytest.mark.parametrize("num_steps", [1, 3, 7, 50, 999])
def test_pairs_are_a_stride_apart_as_in_diffusers(num_steps):
    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(num_steps)
    stride = 1000 // num_steps
    expected = [(t, max(t - stride, 0)) for t in scheduler.timesteps.tolist()]
    assert ddim.timestep_pairs(num_steps) == expected


def test_inversion_visits_the_steps_of_sampling_in_the_other_order():
    x = torch.randn(2, 5, generator=rng())
    down = []
    up = []
    ddim.ddim_sample(model, x, ABAR, 7, callback=lambda t, x: down.append(t))
    ddim.ddim_invert(model, x, ABAR, 7, callback=lambda t, x: up.append(t))
    assert down == ddim.ddim_timesteps(7).tolist()
    assert up == down[::-1]


@pytest.mark.parametrize("walk", [ddim.ddim_sample, ddim.ddim_invert])
@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_a_number_of_steps_that_cannot_be_is_refused(walk, num_steps):
    with pytest.raises(InputError, match=f"num_steps is {num_steps}"):
        walk(model, torch.zeros(1, 2), ABAR, num_steps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ddim.ddim_step(x, x, 0.3, 0.6, eta=1.0), "noise is None"),
        (lambda x: ddim.ddim_step(x, x, 0.6, 0.3, 1.0, x), "only eta=0 runs backwards"),
        (lambda x: ddim.ddim_step(x[0], x, 0.6, 0.3), "eps has shape"),
        (lambda x: ddim.to_eps_x0(x, x, 0.3, "velocity"), "'velocity'"),
        (lambda x: ddim.ddim_timesteps(1000), "past the last trained one"),
    ],
)
def test_refusals_are_the_librarys_own(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.ones(2, 3))


def test_noise_is_drawn_once_a_step_and_only_with_eta():
    x = torch.randn(2, 5, generator=rng())
    generator = rng(1)
    before = generator.get_state()
    ddim.ddim_sample(model, x, ABAR, 4, generator=generator)
    assert torch.equal(generator.get_state(), before)
    ddim.ddim_sample(model, x, ABAR, 4, eta=0.5, generator=generator)
    numbers = rng(1)
    for _ in range(4):
        torch.randn(x.shape, generator=numbers)
    assert torch.equal(generator.get_state(), numbers.get_state())


def test_half_precision_stays_half():
    x = torch.randn(2, 5, generator=rng()).to(torch.bfloat16)
    for walk in (ddim.ddim_sample, ddim.ddim_invert):
        assert walk(model, x, ABAR, 3).dtype == torch.bfloat16
