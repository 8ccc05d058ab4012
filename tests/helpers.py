"What several test files ask: one clear error of a call, what code prints in a fresh process."

import json
import subprocess
import sys

import pytest

from interpkit.core.errors import ExitCode, InterpkitError


def refused(call, *parts: str, code: int = ExitCode.INVALID) -> InterpkitError:
    "The error of `call()`: with this exit code, all of its three parts, and `parts` in its text."
    with pytest.raises(InterpkitError) as caught:
        call()
    error = caught.value
    assert error.code == code, error
    assert error.asked, error
    assert error.given, error
    assert error.mend, error
    for part in parts:
        assert part in str(error), (part, str(error))
    return error


FORKS = """
import json, os, sys, tempfile, traceback
first, codes = json.load(sys.stdin)
known = {}
exec(first, known)
printed = []
for code in codes:
    with tempfile.TemporaryFile("w+") as out:
        if (pid := os.fork()) == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            ends_well = False
            try:
                exec(code, known)
                ends_well = True
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(not ends_well)
        status = os.waitpid(pid, 0)[1]
        out.seek(0)
        printed.append((status, out.read()))
json.dump(printed, sys.stdout)
"""


def printed_by(codes: list[str], first: str = "") -> list[str]:
    """What each code prints in a process of its own, which begins where `first` has run.

    One Python runs `first` and is forked for each code, so that what takes long is imported once.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        input=json.dumps([first, codes]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    for code, (status, text) in zip(codes, printed, strict=True):
        assert status == 0, (code, text)
    return [text.strip() for _, text in printed]
