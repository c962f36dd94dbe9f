"Folding, and the way from pixels to what networks read."

import numpy as np
import pytest
import torch

from tune_a_video_nbs import clips, video
from tune_a_video_nbs.errors import TuneAVideoError
from tune_a_video_nbs.video import clip_to_tensor, fold, tensor_to_clip, unfold


@pytest.mark.parametrize("b, f", [(1, 1), (2, 3), (3, 8)])
def test_folding_keeps_clips_apart(b, f):
    x = torch.randn(b, 4, f, 5, 7)
    folded = fold(x)
    assert folded.shape == (b * f, 4, 5, 7) and unfold(folded, f).equal(x)
    for i in range(b):
        for j in range(f):
            assert folded[i * f + j].equal(x[i, :, j])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: fold(torch.zeros(3, 8, 4, 4)), "got shape (3, 8, 4, 4)"),
        (lambda: unfold(torch.zeros(3, 8, 4), 1), "got shape (3, 8, 4)"),
        (lambda: unfold(torch.zeros(16, 3, 4, 4), 5), "16 pictures do not make clips of 5 frames"),
        (lambda: unfold(torch.zeros(16, 3, 4, 4), 0), "clips of 0 frames"),
        (lambda: clip_to_tensor(np.zeros((4, 4, 3), np.uint8)), "a clip is (f, h, w, 3)"),
        (lambda: tensor_to_clip(torch.zeros(1, 4, 2, 8, 8)), "got shape (1, 4, 2, 8, 8)"),
        (lambda: tensor_to_clip(torch.full((1, 3, 2, 8, 8), float("nan"))), "NaN"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and isinstance(e.value, TuneAVideoError)


def test_every_byte_comes_back():
    clip = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    x = clip_to_tensor(clip)
    assert x.shape == (1, 3, 1, 16, 16) and x.min() == -1 and x.max() == 1
    assert (tensor_to_clip(x)[0] == clip).all() and (tensor_to_clip(x.double())[0] == clip).all()
    assert (tensor_to_clip(x * 1.5)[0] == tensor_to_clip((x * 1.5).clamp(-1, 1))[0]).all()


def test_reading_and_writing_are_found_here_too():
    assert video.read_clip is clips.read_clip and video.write_clip is clips.write_clip
