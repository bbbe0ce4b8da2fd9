"""The user-profile example, for a few seconds: it runs, counts, and ends all that it started.

What it needs from npm is installed below build/ by the first run of examples/user-profile/compare.
Without that it is skipped by name; with CI=true it is installed here.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPARE = ROOT / "examples" / "user-profile" / "compare"
LARDER = pathlib.Path(os.environ.get("LARDER", ROOT / "build" / "larder")).resolve()
IN_CI = os.environ.get("CI") == "true"
NOT_INSTALLED = 3


def compare(*arguments):
    for program in ("node", "redis-server"):
        if shutil.which(program) is None:
            assert not IN_CI, f"{program} is not installed"
            pytest.skip(f"user-profile: {program} is not installed")
    with tempfile.TemporaryDirectory(prefix="larder-compare-") as folder:
        done = subprocess.run(
            [COMPARE, *(() if IN_CI else ("--no-install",)), *arguments],
            capture_output=True,
            text=True,
            timeout=400,
            env={**os.environ, "LARDER": str(LARDER), "TMPDIR": folder},
        )
        if done.returncode == NOT_INSTALLED:
            pytest.skip("user-profile: its npm packages are not installed")
        assert os.listdir(folder) == [], "it leaves nothing behind"
        # Whoever it started has that folder in its environment.
        left = [e for e in pathlib.Path("/proc").glob("[0-9]*/environ") if mentions(e, folder)]
        assert left == [], "it leaves no process behind"
    return done


def mentions(environ, folder):
    try:
        return folder.encode() in environ.read_bytes()
    except OSError:  # it has ended, or is another user's
        return False


@pytest.mark.parametrize("updates", ["set", "sql"])
def test_a_short_comparison(updates):
    done = compare(
        "--json", "--seconds", "2", "--outage", "0.3", "--reads", "100", "--writes", "20",
        "--users", "40", "--updates", updates,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    for side in ("by_hand", "on_larder"):
        result = report[side]
        assert result["wrong"] == 0, side
        assert result["reads"] > 0 and result["writes"] > 0, side
        assert result["queries"] > 0, f"{side}: writes make loads necessary"
        assert result["queries"] < result["reads"], f"{side}: nothing hits"
    # Redis is not in its way, and it declares a bound.
    assert report["on_larder"]["read_errors"] == 0, report["on_larder"]["first_error"]
    assert report["on_larder"]["write_errors"] == 0, report["on_larder"]["first_error"]
    assert report["on_larder"]["late"] == 0


def test_wrong_usage():
    done = compare("--updates", "carrier-pigeon")
    assert done.returncode == 2
    assert "carrier-pigeon" in done.stderr
