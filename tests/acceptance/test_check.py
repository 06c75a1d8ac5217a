"""`dispatcher check` on the command line."""

import json

from dispatcher.exceptions import ExitCode
from tests.acceptance.test_run import RECEIVER, run, write_app
from tests.ledger import APP, IMAGES, Ledger


def test_check_finds_no_error_in_a_good_application(mongo, database, foreign, tmp_path):
    foreign.create_collection("accounts", **IMAGES)
    environment = Ledger(tmp_path / "ledger", mongo.url, database).environment
    well = run("check", APP, **environment)
    assert (well.returncode, well.stderr) == (ExitCode.OK, "")
    assert "All 1 collections keep pre and post images" in well.stdout
    assert "\x1b" not in well.stdout  # colours are for terminals
    shown = json.loads(run("check", APP, "--json", **environment).stdout)
    assert {one["level"] for one in shown} <= {"ok", "warning"}


def test_check_names_problems(tmp_path):
    missing = run("check", "no_such_module:registry", "--json", cwd=tmp_path)
    assert missing.returncode == ExitCode.FAILED
    (found,) = json.loads(missing.stdout)
    assert (found["level"], found["topic"]) == ("error", "application")
    clash = RECEIVER + "@post_save(Thing, name='app.saved')\nasync def other(sender, **kwargs): ...\n"
    app = write_app(tmp_path, "mongodb://localhost", receivers=clash)
    clashing = run("check", app, cwd=tmp_path)
    assert clashing.returncode == ExitCode.FAILED
    assert "app.saved" in clashing.stdout
    assert "Traceback" not in clashing.stderr
