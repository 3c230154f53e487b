"""runtime/errors.py: what users see instead of a traceback."""

import pytest
from reuse_distill.runtime.errors import RdError, cli, nearest


def raising(error):
    @cli
    def main(argv=None):
        raise error

    return main


def test_an_error_and_its_hint(capsys):
    assert raising(RdError("a.wav: 3 channels, 1 is needed", hint="mix them"))([]) == 2
    assert capsys.readouterr() == ("", "error: a.wav: 3 channels, 1 is needed\n\nhint: mix them\n")
    assert raising(RdError("no hint"))([]) == 2
    assert capsys.readouterr().err == "error: no hint\n"


def test_an_unreadable_file_is_told(capsys):
    assert raising(PermissionError(13, "Permission denied", "/x"))([]) == 2
    assert capsys.readouterr().err == "error: /x: Permission denied\n"


def test_mistakes_of_the_program_keep_their_traceback():
    for error in (ValueError("x"), OSError("no file in it"), KeyError("x")):
        with pytest.raises(type(error)):
            raising(error)([])


def test_an_interrupt_is_quiet(capsys):
    assert raising(KeyboardInterrupt())([]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_what_main_returns_is_kept():
    assert cli(lambda argv=None: 7)([]) == 7


def test_nearest():
    assert nearest("offlin", ["offline", "window"]) == "did you mean 'offline'?"
    assert nearest("armhubert", ["starhubert", "armhubert-960h"]) == "did you mean 'armhubert-960h'?"
    assert nearest("layer", ["layerdrop", "layers"]) == "did you mean 'layers'?"
    assert nearest("xyz", ["b", "a"]) == "known: a, b"
