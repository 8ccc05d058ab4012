"What several test files ask: that a call is refused with one clear error."

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
