"Which model a name means, where warnings point, and that other libraries are left as they were."

import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import huggingface_hub.utils as hub_utils
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from diffusers.utils import logging as diffusers_logging
from small_nets import STABLE, small_pipeline
from transformers.utils import logging as transformers_logging

from tune_a_video_nbs import ldm
from tune_a_video_nbs.errors import InputError, MissingFileError


@pytest.fixture(scope="module")
def pipe():
    return ldm.load_image_model("sprites")


# Names (B27)


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder to work in."
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_model(folder):
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")


def test_a_bundled_name_means_the_bundled_model(here, recwarn):
    bundled = Path(ldm.model_path("sprites"))
    assert bundled.parent.name == "assets"
    assert "sprites" in ldm.bundled_models()
    assert not recwarn.list


def test_a_model_folder_of_a_bundled_name_wins_and_says_how_to_name_either(here):
    bundled = ldm.model_path("sprites")
    make_model(here / "sprites")
    with pytest.warns(UserWarning, match="the folder is taken") as caught:
        taken = ldm.model_path("sprites")
    assert Path(taken).resolve() == here / "sprites"
    message = str(caught[0].message)
    assert repr(taken) in message
    assert repr(bundled) in message


def test_both_names_that_the_warning_gives_are_taken_without_one(here, recwarn):
    bundled = ldm.model_path("sprites")
    make_model(here / "sprites")
    assert ldm.model_path("./sprites") == "./sprites"
    assert ldm.model_path(bundled) == bundled
    assert not recwarn.list


def test_a_folder_of_pictures_is_no_model(here, recwarn):
    (here / "sprites").mkdir()
    assert Path(ldm.model_path("sprites")).parent.name == "assets"
    assert not recwarn.list


def test_names_that_lead_nowhere(here):
    with pytest.raises(MissingFileError, match="no model called 'spritez': use 'sprites'"):
        ldm.model_path("spritez")
    (here / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds no model_index.json"):
        ldm.model_path("empty")
    assert ldm.model_path("owner/model") == "owner/model"


# Warnings


def test_warnings_point_at_the_callers_line(here, pipe):
    make_model(here / "sprites")
    with pytest.warns(UserWarning) as caught:
        ldm.model_path("sprites")
        ldm.as_ddim(PNDMScheduler(**STABLE))
        ldm.check_prompt(pipe.tokenizer, "a red dragon")
        ldm.check_prompt(pipe.tokenizer, "a red star " * 20)
    assert len(caught) == 4
    assert {w.filename for w in caught} == {__file__}
    assert len({w.lineno for w in caught}) == 4


def through(module, call):
    "A function that calls `call`, and whose code says that it is of `module`."
    space = {"__name__": module, "call": call}
    exec("def passes_on():\n    call()", space)
    return space["passes_on"]


def test_warnings_pass_over_diffusers_and_torch_too():
    "As when diffusers' loader calls our pipeline: the reader's line is three calls up."
    ours = through("tune_a_video_nbs.pipeline", partial(ldm.warn, "look here"))
    theirs = through("diffusers.pipelines.utils", ours)
    wrapped = through("torch.utils._contextlib", theirs)
    with pytest.warns(UserWarning, match="look here") as caught:
        wrapped()
    assert caught[0].filename == __file__


# Samplers


def test_a_model_that_comes_with_pndm_loads_without_a_word(tmp_path, recwarn):
    "Every Stable Diffusion 1.5 does, and nobody asked for it."
    folder = small_pipeline(tmp_path / "sd1")
    recwarn.clear()
    pipe = ldm.load_image_model(folder)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.scheduler.config.clip_sample is False
    assert not [w for w in recwarn if "replaced" in str(w.message)]


def test_a_sampler_that_somebody_chose_is_not_replaced_without_a_word(tmp_path):
    folder = small_pipeline(tmp_path / "sd1")
    with pytest.warns(UserWarning, match="EulerDiscreteScheduler is replaced by DDIM") as caught:
        ldm.load_image_model(folder, scheduler=EulerDiscreteScheduler(**STABLE))
    told = [w for w in caught if "is replaced" in str(w.message)]
    assert [w.filename for w in told] == [__file__]


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(**STABLE, clip_sample=True),
        DDIMScheduler(**STABLE, clip_sample=False, timestep_spacing="linspace"),
        EulerDiscreteScheduler(**STABLE, timestep_spacing="linspace"),
    ],
    ids=["clips", "linspace", "euler"],
)
def test_a_setting_that_is_overruled_is_always_told(scheduler):
    with pytest.warns(UserWarning, match="is replaced by DDIM"):
        ldm.as_ddim(scheduler, chosen=False)


# Prompts


def test_prompts_are_checked(pipe, recwarn):
    assert ldm.check_prompt(pipe.tokenizer, "  a red star ") == "a red star"
    assert not recwarn.list
    for nothing in ("", "  ", None, 3):
        with pytest.raises(InputError, match="the prompt is"):
            ldm.check_prompt(pipe.tokenizer, nothing)


def test_one_prompt_is_encoded_as_among_others(pipe):
    one = ldm.encode_text(pipe, "a red star")
    two = ldm.encode_text(pipe, ["a blue ring", "a red star"])
    assert one.shape == (1, *two.shape[1:])
    assert (one[0] - two[1]).abs().max() < 1e-4


# Other libraries


def loudness():
    "What transformers, diffusers and the Hub would show now."
    libraries = [(lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in LIBRARIES]
    return libraries, hub_utils.are_progress_bars_disabled()


LIBRARIES = (transformers_logging, diffusers_logging)
SILENT = [(transformers_logging.ERROR, False)] * 2


@pytest.fixture
def loud():
    "Both libraries talkative, as a user may have them; what it was comes back."
    (before, _) = loudness()
    for library in LIBRARIES:
        library.set_verbosity_info()
        library.enable_progress_bar()
    yield loudness()
    for library, (verbosity, shows_bars) in zip(LIBRARIES, before):
        library.set_verbosity(verbosity)
        if not shows_bars:
            library.disable_progress_bar()


def test_quiet_lasts_for_its_block(loud):
    with ldm.quiet():
        libraries, downloads_hidden = loudness()
        assert libraries == SILENT
        assert downloads_hidden == loud[1]
        with ldm.quiet():
            assert loudness()[0] == SILENT
        assert loudness()[0] == SILENT
    assert loudness() == loud


def test_quiet_ends_when_an_error_does(loud):
    with pytest.raises(ZeroDivisionError), ldm.quiet():
        raise ZeroDivisionError
    assert loudness() == loud


def test_overlapping_blocks_of_two_threads_leave_nothing_behind(loud):
    "The first to enter is the first to leave."
    both_inside = threading.Barrier(2, timeout=30)
    first_left = threading.Event()

    def second():
        with ldm.quiet():
            both_inside.wait()
            assert first_left.wait(30)
            seen.append(loudness()[0])

    seen = []
    thread = threading.Thread(target=second)
    with ldm.quiet():
        thread.start()
        both_inside.wait()
    first_left.set()
    thread.join(30)
    assert seen == [SILENT]
    assert loudness() == loud


def test_quiet_alone_lasts(loud):
    silence = ldm.quiet()
    with ldm.quiet():
        pass
    assert loudness()[0] == SILENT
    silence.__exit__()
    assert loudness() == loud


def test_import_leaves_other_libraries_as_they_are():
    code = """
import logging
from diffusers.utils import logging as theirs
from transformers.utils import logging as others
import diffusers, transformers
def state():
    loggers = [logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict)]
    return {log.name: (log.level, len(log.filters)) for log in loggers}
known = state()
import tune_a_video_nbs.ldm
after = state()
assert {name: after[name] for name in known} == known
assert theirs.is_progress_bar_enabled() and others.is_progress_bar_enabled()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_loading_gives_no_lasting_change(loud):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ldm.load_image_model("sprites")
    assert loudness() == loud
