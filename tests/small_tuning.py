"A few steps of tuning on a small network, for the tests of training, tuning and the files of both."

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from small_nets import conditions, small_unet

from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.tune import tune


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def clip_and_text(net, frames=3):
    "A clip, its text, and SDXL's conditions where the network wants them."
    g = rng(1)
    given = conditions(net, 1, g)
    latents = torch.randn(1, 4, frames, 8, 8, generator=g)
    more = dict(added_cond_kwargs=given.get("added_cond_kwargs"))
    return latents, given["encoder_hidden_states"], more


def run(net=None, steps=4, lr=1e-3, prediction_type="epsilon", wrapped=None, **kwargs):
    "Tune a small network, through a wrapper if one is given; the network."
    net = net or inflate(small_unet())
    latents, text, more = clip_and_text(net)
    scheduler = DDIMScheduler(prediction_type=prediction_type)
    tune(net if wrapped is None else wrapped, latents, text, scheduler, steps, lr, **more | kwargs)
    return net


def values(net):
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def off(a, b):
    "The largest difference between the weights of two networks."
    pairs = zip(a.parameters(), b.parameters())
    return max((p.float() - q.float()).abs().max().item() for p, q in pairs)


class Bomb:
    "What a pickle can hold: a call, made by whoever reads it."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
