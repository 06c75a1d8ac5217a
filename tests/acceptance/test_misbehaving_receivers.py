"""Receivers can neither end the daemon nor prevent its end."""

import contextlib
import signal
import time

import psutil
import pytest

from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import ExitCode
from tests.support import daemon, eventually_sync

pytestmark = pytest.mark.slow

HEAD = """
import asyncio, inspect, os, pathlib, signal, sys, threading, time
import mongoz
from mongoz.core.signals import post_save

registry = mongoz.Registry({url!r}, dispatched={database!r})

class Thing(mongoz.Document):
    deed: str = mongoz.String()
    Meta = type("Meta", (), {{"registry": registry, "database": {database!r}, "collection": "things"}})

left = set()

def leave(coroutine):
    task = asyncio.ensure_future(coroutine)
    left.add(task)
    task.add_done_callback(left.discard)

def loop():
    return asyncio.get_running_loop()

async def raise_(error):
    raise error

async def cancel_all():
    for task in asyncio.all_tasks():
        task.cancel()

async def cancel_own():
    mine = [asyncio.create_task(asyncio.sleep(600)) for _ in range(3)]
    await asyncio.sleep(0)
    [task.cancel() for task in mine]
    await asyncio.gather(*mine, return_exceptions=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))
    for waits in (lambda: asyncio.wait_for(asyncio.sleep(600), 0.05), lambda: deadline(0.05)):
        try:
            await waits()
        except TimeoutError:
            continue
        assert False

async def deadline(seconds):
    async with asyncio.timeout(seconds):
        await asyncio.sleep(600)

async def refuse():
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            continue

@post_save(Thing, name="unruly", retry=1)
async def unruly(sender, instance, **kwargs):
    with pathlib.Path("delivered").open("a") as file:
        file.write(instance.deed + "\\n")
    global main_loop
    main_loop = loop()
    done = eval(instance.deed)
    if inspect.isawaitable(done):
        await done
"""

DEEDS = {
    "leave(raise_(SystemExit(0)))": "loop.exit_refused",
    "leave(raise_(KeyboardInterrupt()))": "loop.exit_refused",
    "[leave(raise_(SystemExit(n))) for n in range(20)]": "loop.exit_refused",
    "asyncio.wait_for(raise_(SystemExit(3)), 5)": "loop.exit_refused",
    "loop().call_soon(sys.exit, 0)": "loop.exit_refused",
    "loop().stop()": "loop.stop_refused",
    "[loop().call_soon(loop().stop) for _ in range(3)]": "loop.stop_refused",
    "leave(raise_(ValueError('nobody waits for me')))": "loop.failed",
    "loop().call_soon(lambda: 1 / 0)": "loop.failed",
    "threading.Thread(target=lambda: 1 / 0).start()": "thread.failed",
    "[signal.signal(one, signal.SIG_DFL) for one in (signal.SIGTERM, signal.SIGINT)]": "signals.taken_back",
    "loop().shutdown_default_executor()": "delivery.dead_lettered",
    "asyncio.to_thread(sys.exit, 0)": "delivery.dead_lettered",
    "sys.exit(0)": "delivery.dead_lettered",
}


@contextlib.contextmanager
def unruly(tmp_path, url, database, *arguments):
    (tmp_path / "unruly_app.py").write_text(HEAD.format(url=url, database=database))
    state = ("--state-database", f"{database}_state", "--grace", "0.5")
    with daemon("unruly_app:registry", *state, *arguments, cwd=tmp_path) as running:
        running.wait_started(within=60)
        yield running


def delivered(tmp_path):
    file = tmp_path / "delivered"
    return file.read_text().splitlines() if file.exists() else []


def do(deed: str, tmp_path, foreign) -> None:
    """Makes the receiver perform an action."""
    foreign["things"].insert_one({"deed": deed})
    eventually_sync(lambda: deed in delivered(tmp_path), within=60)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_no_action_of_a_receiver_ends_the_daemon(loop, tmp_path, mongo, database, foreign, monkeypatch):
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text("from asyncio import SelectorEventLoop as Loop\n")
    with unruly(tmp_path, mongo.url, database) as running:
        for n, (deed, action) in enumerate(DEEDS.items()):
            before = len(running.lines(action))
            foreign["things"].insert_many([{"deed": f"{n}+{i}"} for i in range(20)])
            do(deed, tmp_path, foreign)
            foreign["things"].insert_many([{"deed": f"{n}-{i}"} for i in range(20)])
            both = {f"{n}{sign}{i}" for sign in "+-" for i in range(20)}
            eventually_sync(
                lambda both=both: set(delivered(tmp_path)) >= both or running.process.poll() is not None, within=60
            )
            assert running.process.poll() is None, (deed, running.log)
            eventually_sync(
                lambda action=action, before=before: len(running.lines(action)) > before, within=60, what=deed
            )
        assert running.terminate(within=60) == ExitCode.OK
    (started,) = running.lines("dispatcher.started")
    assert started["loop"] == loop
    assert running.lines("dispatcher.stopped")
    assert len(delivered(tmp_path)) == 41 * len(DEEDS)


LEFT_BEHIND = {
    "threading.Thread(target=lambda: time.sleep(600), name='eternal').start()": "threads",
    "leave(asyncio.to_thread(lambda: time.sleep(600)))": "threads",
    "leave(refuse())": "tasks",
}


@pytest.mark.parametrize("deed", LEFT_BEHIND)
def test_threads_and_tasks_left_by_a_receiver_are_named_and_do_not_prevent_the_end(
    deed, tmp_path, mongo, database, foreign
):
    with unruly(tmp_path, mongo.url, database) as running:
        do(deed, tmp_path, foreign)
        time.sleep(1)  # now the thread or the task is running
        assert running.terminate(within=60) == ExitCode.OK
    (line,) = running.lines("dispatcher.left_behind")
    named = str(line[LEFT_BEHIND[deed]])
    assert "unruly_app.py" in named or "<string>" in named


def test_a_receiver_that_blocks_the_event_loop_does_not_prevent_the_end(tmp_path, mongo, database, foreign):
    with unruly(tmp_path, mongo.url, database) as running:
        do("time.sleep(600)", tmp_path, foreign)
        assert running.terminate(within=60) == ExitCode.FORCED
    (line,) = running.lines("dispatcher.left_behind")
    assert "unruly_app.py" in line["main"]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "deed",
    [
        "[task.cancel() for task in asyncio.all_tasks()]",
        "[task.cancel() for task in asyncio.all_tasks() if task is not asyncio.current_task()]",
        "asyncio.create_task(cancel_all())",
        "asyncio.to_thread(lambda: [task.cancel() for task in asyncio.all_tasks(main_loop)])",
    ],
)
def test_a_receiver_that_cancels_the_tasks_of_the_dispatcher_has_failed(
    deed, loop, tmp_path, mongo, database, foreign
):
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text("from asyncio import SelectorEventLoop as Loop\n")
    with unruly(tmp_path, mongo.url, database) as running:
        do(deed, tmp_path, foreign)
        eventually_sync(lambda: running.lines("delivery.dead_lettered"), within=60)
        do("'it goes on'", tmp_path, foreign)
        assert running.terminate(within=60) == ExitCode.OK
    (letter,) = foreign.client[f"{database}_state"]["held"].find()
    assert "is the dispatcher's" in letter["error"]["message"]
    assert letter["attempts"] == 1  # the cancellation counts as a failed attempt


def test_a_receiver_may_cancel_its_own_tasks(tmp_path, mongo, database, foreign):
    with unruly(tmp_path, mongo.url, database) as running:
        do("cancel_own()", tmp_path, foreign)
        assert running.terminate(within=60) == ExitCode.OK
    assert "dead_lettered" not in running.log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "deed",
    [
        "os.fork()",
        "os.fork() or sys.exit(3)",
        "asyncio.sleep(0.01 if os.fork() else 600)",
        "os.fork() or 1 / 0",
        "asyncio.to_thread(os.fork)",
    ],
)
def test_a_process_forked_by_a_receiver_is_not_a_dispatcher(deed, loop, tmp_path, mongo, database, foreign):
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text("from asyncio import SelectorEventLoop as Loop\n")
    with unruly(tmp_path, mongo.url, database) as running:
        do(deed, tmp_path, foreign)
        dispatcher = psutil.Process(running.process.pid)
        eventually_sync(lambda: {one.status() for one in dispatcher.children()} == {"zombie"}, within=60)
        foreign["things"].insert_many([{"deed": f"{n}"} for n in range(50)])
        eventually_sync(lambda: len(delivered(tmp_path)) >= 51, within=60)
        assert running.terminate(within=60) == ExitCode.OK
    assert len(delivered(tmp_path)) == 51
    assert not running.lines("delivery.dead_lettered")
    assert ("a receiver forked a process" in running.log) == ("sys.exit" not in deed)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_other_signals_drain_like_sigterm(number, tmp_path, mongo, database):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup, the daemon would inherit that SIGHUP is ignored
    try:
        with unruly(tmp_path, mongo.url, database) as running:
            running.process.send_signal(number)
            if number == signal.SIGHUP:  # a terminal sends it several times
                running.process.send_signal(number)
            assert running.process.wait(60) == ExitCode.OK
    finally:
        signal.signal(number, before)
    assert running.lines("dispatcher.stopped")


def test_nohup_is_respected(tmp_path, mongo, database, foreign):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with unruly(tmp_path, mongo.url, database) as running:
            signal.signal(signal.SIGHUP, before)
            running.process.send_signal(signal.SIGHUP)
            do("None", tmp_path, foreign)
            assert running.terminate(within=60) == ExitCode.OK
    finally:
        signal.signal(signal.SIGHUP, before)


class Strange(BaseException):
    pass


@pytest.mark.parametrize(
    "error", ["SystemExit(0)", "GeneratorExit('x')", "asyncio.CancelledError('x')", "Strange('x')"]
)
def test_the_line_of_any_exception_of_an_application_is_named(error, tmp_path):
    source = f"import asyncio\n\nclass Strange(BaseException):\n    pass\n\nraise {error}\n"
    (tmp_path / "unruly_app.py").write_text(source)
    with daemon("unruly_app:registry", cwd=tmp_path) as running:
        assert running.process.wait(60) == ExitCode.APPLICATION
    assert "unruly_app.py:6" in running.log
    assert "Traceback" not in running.log


@pytest.mark.parametrize("last", ["killed", "frozen"])
def test_a_lost_server_does_not_prevent_the_end(last, database, tmp_path):
    """SIGSTOP stops the daemon at arbitrary moments, so the driver may hold any of its locks."""
    with embedded_mongo() as server, unruly(tmp_path, server.url, database, "--lease", "1") as running:
        mongod = psutil.Process(server.pid)
        for seconds in (0.1, 0.5, 1.5):
            mongod.suspend()
            running.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            running.process.send_signal(signal.SIGCONT)
            time.sleep(seconds)
            mongod.resume()
        mongod.kill() if last == "killed" else mongod.suspend()
        time.sleep(0.5)
        assert running.terminate(within=60) == ExitCode.OK
        with contextlib.suppress(psutil.NoSuchProcess):
            mongod.kill()
    assert running.lines("dispatcher.stopped")


@pytest.mark.parametrize(
    "deed",
    [
        "setattr(sys, 'stderr', object()), setattr(sys, 'stdout', None)",
        "__import__('structlog').configure(processors=[lambda *line: 1 / 0])",
    ],
)
def test_changes_of_streams_and_loggers_by_a_receiver_do_not_affect_the_daemon(
    deed, tmp_path, mongo, database, foreign
):
    with unruly(tmp_path, mongo.url, database) as running:
        do(deed, tmp_path, foreign)
        do("1 / 0", tmp_path, foreign)
        assert running.terminate(within=60) == ExitCode.OK
    assert running.lines("delivery.dead_lettered")
    assert running.lines("dispatcher.stopped")
