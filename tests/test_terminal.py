"Errors in one line, warnings of our own, exit codes."

import subprocess
import sys
import warnings

import pytest
import torch
import typer

from tune_a_video_nbs.errors import DivergedError, InputError, TuneAVideoWarning, warn
from tune_a_video_nbs.terminal import in_terminal, is_expected, one_line, only_our_warnings, show_tracebacks


@pytest.mark.parametrize(
    "error",
    [
        InputError("a size"),
        DivergedError("the loss is nan"),
        FileNotFoundError("clip.mp4"),
        OSError(28, "No space left on device"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_what_the_world_can_do_is_one_line(error, capsys):
    @in_terminal
    def command():
        raise error

    with pytest.raises(typer.Exit) as leave:
        command()
    assert leave.value.exit_code == 1
    assert capsys.readouterr().err == f"tune-a-video: {one_line(error)}\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("Expected all tensors to be on the same device"),
        KeyError("caption"),
        TypeError("unexpected keyword"),
    ],
)
def test_a_bug_shows_where(error):
    "Every `ValueError` was shown as one line, torch's too."

    @in_terminal
    def command():
        raise error

    with pytest.raises(type(error)):
        command()


def test_ctrl_c_is_told_and_has_its_exit_code(capsys):
    @in_terminal
    def command():
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as leave:
        command()
    assert leave.value.exit_code == 130
    assert capsys.readouterr().err == "tune-a-video: stopped\n"


def test_an_exit_code_of_the_command_stays():
    @in_terminal
    def command():
        raise typer.Exit(3)

    with pytest.raises(typer.Exit) as leave:
        command()
    assert leave.value.exit_code == 3


@pytest.mark.parametrize("options", [(), ("--debug",)])
def test_debug_shows_the_traceback_of_an_error_that_is_ours(options, capsys):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback()
    def before(debug: bool = False) -> None:
        show_tracebacks(debug)

    @app.command("fail")
    @in_terminal
    def fail_command() -> None:
        raise InputError("a size")

    expected = InputError if options else SystemExit
    with pytest.raises(expected):
        app([*options, "fail"])
    show_tracebacks(False)


def test_one_line_leaves_out_further_paragraphs():
    assert one_line(ValueError("what is\nwrong\n\nAdvice in five lines.")) == "what is wrong"
    assert one_line(OSError(13, "Permission denied", "runs")) == "runs: Permission denied"
    assert one_line(MemoryError()) == "MemoryError"
    assert not is_expected(ValueError("x"))


def test_only_our_warnings_are_shown(capsys):
    with only_our_warnings():
        warn("the clip has one frame")
        warnings.warn("an opinion of another library", UserWarning, stacklevel=2)
        warnings.warn("old", DeprecationWarning, stacklevel=2)
    assert capsys.readouterr().err == "tune-a-video: warning: the clip has one frame\n"


def test_a_warning_is_found_by_its_category_wherever_it_points():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", TuneAVideoWarning)
        with pytest.raises(TuneAVideoWarning, match="one frame"):
            warn("the clip has one frame")


def test_the_terminal_waits_for_no_torch():
    code = "import sys, tune_a_video_nbs.cli\n"
    code += "print(sorted({'torch', 'diffusers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
