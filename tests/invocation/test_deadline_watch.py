"""The watch in the main thread, each case in a process of its own: signals, timers, forks and time-outs by the thousand."""

from __future__ import annotations

import pytest

from stalls import repeated_after_a_stall
from timing_out import STORM, run

pytestmark = pytest.mark.usefixtures("root")


def test_thousands_of_time_outs_at_random_moments_leave_nothing_undone_and_nothing_held():
    run(STORM + "storm(1500)\n")


def test_sigalrm_and_setitimer_stay_the_handlers_own():
    output, _ = run("""
rung = []
signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
@isolated
def handler(event, context):
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    while len(rung) < 3:
        time.sleep(0.05)
    signal.alarm(1)
    sleeps({}, None)
print(call(handler, 2.5), len(rung) >= 3, signal.getitimer(signal.ITIMER_REAL)[0] <= 1)
""")
    assert output == "InvocationTimeout True True\n"


def test_a_handler_that_blocks_its_signals_goes_unwatched_and_the_next_one_does_not():
    output, _ = run("""
@isolated
def blocks(event, context):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    time.sleep(2.5)
    return "slept"
print(call(blocks, 2))
print(call(sleeper, 0.5))
""")
    first, warning, second = output.splitlines()
    assert (first, second) == ("slept", "InvocationTimeout")
    assert warning.startswith("WARNING perinvoke found its signal")


@pytest.mark.parametrize(
    "does",
    [
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "[signal.signal(n, signal.SIG_IGN) for n in range(signal.SIGRTMIN, signal.SIGRTMAX + 1)]",
    ],
)
def test_a_quick_handler_that_blocks_or_ignores_all_signals_costs_the_next_one_nothing(does):
    output, _ = run(f"""
print(call(isolated(lambda event, context: ({does}, None)[1]), 20))
for _ in range(2):
    print(call(sleeper, 0.5, {{"seconds": 3}}))
""")
    none, warning, *rest = output.splitlines()
    assert none == "None"
    assert warning.startswith("WARNING perinvoke found its signal")
    assert rest == ["InvocationTimeout", "InvocationTimeout"]


def test_a_signal_that_is_lost_is_not_replaced_by_faulthandlers():
    output, _ = run("""
from perinvoke.invocation import deadline_watch
call(sleeper, 5, {"seconds": 0})
watch = deadline_watch._watch
first, stuck = watch._signal, watch._stuck_signal
signal.signal(first, lambda number, frame: None)
print(call(sleeper, 0.3, {"seconds": 3}))
print(len({first, stuck, watch._signal}), watch._stuck_signal not in {0, first, watch._signal})
""")
    assert output.splitlines()[1:] == ["InvocationTimeout", "3 True"]


def test_a_signal_that_is_lost_for_good_is_replaced_by_a_thread():
    output, _ = run("""
call(sleeper, 5, {"seconds": 0})
for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
    signal.signal(number, lambda number, frame: None)
@isolated
def loops(event, context):
    until = time.monotonic() + 5
    while time.monotonic() < until:
        pass
print(call(loops))
print(call(loops))
""")
    found, lost, *rest = output.splitlines()
    assert "handled by somebody else" in found
    assert lost.startswith("WARNING perinvoke watches over deadlines by a thread from now on: its timer is lost")
    assert rest == ["InvocationTimeout", "InvocationTimeout"]


def test_a_handler_that_is_interrupted_while_it_logs_has_its_stacks_written_past_logging():
    """In the middle of ``queue.put``, whose lock a ``QueueHandler`` would wait for."""
    output, errors = run(
        """
import logging.handlers
class Slow(queue.Queue):
    def _put(self, item):
        time.sleep(2.8)
        super()._put(item)
logging.getLogger().addHandler(logging.handlers.QueueHandler(Slow()))
print(call(isolated(on_timeout="report")(lambda event, context: logging.error("a line") or "done"), 2))
""",
        seconds=20,
    )
    assert output.splitlines()[-1] == "done"
    (line,) = errors.splitlines()
    assert line.startswith("perinvoke: invocation r-1 is still running though its time is up. Stacks")


def test_a_handler_that_takes_the_signal_goes_unwatched_and_the_next_one_does_not():
    output, _ = run("""
@isolated
def takes(event, context):
    for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
        signal.signal(number, lambda number, frame: None)
    time.sleep(2.5)
    for number in range(signal.SIGRTMIN, signal.SIGRTMIN + 20):
        signal.signal(number, signal.SIG_DFL)
    return "slept"
print(call(takes, 2))
print(call(sleeper, 0.5))
""")
    first, warning, second = output.splitlines()
    assert (first, second) == ("slept", "InvocationTimeout")
    assert "handled by somebody else, and takes another one" in warning


def test_without_a_free_signal_a_thread_watches_instead():
    output, _ = run("""
for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
    signal.signal(number, lambda number, frame: None)
@isolated
def loops(event, context):
    while True:
        pass
print(call(loops))
""")
    assert output.splitlines()[0].startswith("WARNING perinvoke watches over deadlines by a thread, because there is no timer")
    assert output.splitlines()[1:] == ["InvocationTimeout"]


def test_a_timer_that_still_runs_interrupts_nobody_later():
    output, _ = run("""
print(call(sleeper, 2, {"seconds": 0.01}))
time.sleep(1)
print(call(isolated(lambda event, context: time.sleep(1.5) or "done"), 30))
""")
    assert output == "slept\ndone\n"


def test_a_forked_child_is_not_interrupted_and_watches_over_its_own_invocations():
    output, _ = run("""
@isolated
def forks(event, context):
    pid = os.fork()
    if pid == 0:
        time.sleep(2.4)
        print("child", call(sleeper), flush=True)
        os._exit(0)
    try:
        time.sleep(30)
    finally:
        os.waitpid(pid, 0)
print(call(forks, 2))
""")
    assert output == "child InvocationTimeout\nInvocationTimeout\n"


def test_at_the_processs_end_no_timer_strikes():
    run("call(sleeper, 0.2, {'seconds': 0.01}); time.sleep(0.19)\n")


def test_code_that_is_stuck_in_c_has_its_stack_written_and_other_code_has_not():
    sooner = """
from perinvoke.invocation import deadline_watch
deadline_watch._STUCK_SPARE_SECONDS = 0.5
"""
    stuck = """
def somebody_else():
    while True:
        pass
threading.Thread(target=somebody_else, daemon=True).start()
@isolated
def handler(event, context):
    stuck_in_c(3)
print(call(handler), flush=True)
os._exit(0)
"""
    output, errors = run(sooner + stuck)
    assert output == "InvocationTimeout\n"  # when the call has returned
    assert errors.count("in stuck_in_c") == 1
    assert "most recent call first" in errors
    assert "somebody_else" not in errors  # who reads the frames of running code may crash
    output, errors = run(sooner + "print(call(sleeper)); time.sleep(1); print(call(sleeper, 9, {'seconds': 1}))")
    assert output == "InvocationTimeout\nslept\n"
    assert errors == "" or errors.endswith("had stood still; nothing is stuck\n")


def test_a_stack_that_was_written_because_the_process_stood_still_is_explained():
    _, errors = run("""
from perinvoke.invocation import deadline_watch
deadline_watch._STUCK_SPARE_SECONDS = 0.1
call(sleeper, 0.2, {"seconds": 0})
stuck_in_c(2)
time.sleep(0.2)
""")
    assert errors.splitlines()[0].startswith("Stack (most recent call first)")
    assert errors.splitlines()[-1].endswith("had stood still; nothing is stuck")


def test_a_signal_during_a_look_begins_no_other():
    output, _ = run("""
from perinvoke.invocation import deadline_watch, measures
real, looks = deadline_watch.standing_of, []
def standing_of(watched, frame, handling):
    looks.append(1)
    if len(looks) == 1:
        signal.raise_signal(deadline_watch._watch._signal)
        looks.append("still the same")
    return real(watched, frame, handling)
deadline_watch.standing_of = standing_of
print(call(sleeper), looks[:2])
""")
    assert output == "InvocationTimeout [1, 'still the same']\n"


SUPERVISOR = """
told = []
class Supervisor:
    def replace_at(self, at_monotonic, timeout_seconds):
        told.append((at_monotonic, timeout_seconds))
supervised.supervisor = Supervisor()
"""


def test_a_supervisor_is_told_when_to_end_the_worker_and_that_it_need_not():
    output, _ = run(
        SUPERVISOR
        + """
inner = isolated(on_timeout="replace")(lambda event, context: len(told))
@isolated(on_timeout="replace")
def handler(event, context):
    inner({}, Context(50))
    return "done"
outermost = Context(10)
print(handler({}, outermost))
(first, second, third, last) = told
print(round(first[0] - outermost.until, 1), 7 < first[1] <= 10, first == second == third, last)
""",
        PERINVOKE_TIMEOUT_MARGIN_MS="300",
    )
    assert output == "done\n-0.1 True True (0.0, 0.0)\n"


def test_the_worker_need_not_be_replaced_only_when_all_of_its_cleanup_has_run():
    output, _ = run(
        SUPERVISOR
        + """
@isolated(on_timeout="replace")
def handler(event, context):
    current().defer(lambda: print([bool(at) for at, _ in told]))
print(call(handler, 10), [bool(at) for at, _ in told])
"""
    )
    assert output == "[True]\nNone [True, False]\n"


def test_a_worker_that_cannot_be_watched_is_not_replaced_instead():
    output, _ = run(
        SUPERVISOR
        + """
from perinvoke.invocation import deadline_watch
def broken(*args, **kwargs):
    raise OSError("broken")
deadline_watch.DeadlineWatch = broken
print(call(isolated(on_timeout="replace")(lambda event, context: "done"), 10), told)
"""
    )
    assert output.splitlines()[1:] == ["done []"]


@pytest.mark.parametrize("how", ["stuck_in_c(3.5)", "swallows()"])
@repeated_after_a_stall
def test_the_stacks_are_written_just_before_the_worker_is_ended(how):
    """Four seconds, a margin of two: the interrupt after 2.05, the worker's end after 3.05, and the stacks before it."""
    output, errors = run(
        SUPERVISOR
        + f"""
sys.stdout.reconfigure(line_buffering=True)
@isolated(on_timeout="replace")
def handler(event, context):
    def watch_log():
        time.sleep(max(0, told[0][0] - time.monotonic()))
        print("ended", flush=True)
    thread = threading.Thread(target=watch_log, daemon=True)
    thread.start()
    def swallows():
        until = time.monotonic() + 4.5
        while time.monotonic() < until:
            try:
                time.sleep(0.05)
            except BaseException:
                pass
    try:
        {how}
    finally:
        thread.join(10)
print(call(handler, 4))
""",
        PERINVOKE_TIMEOUT_MARGIN_MS="2000",
    )
    if how.startswith("stuck"):
        assert output == "ended\nInvocationTimeout\n"
        assert errors.count("in stuck_in_c") == 1
    else:
        assert output.index("its worker is ended and replaced. Stacks") < output.index("ended\n")
        assert errors == ""


def test_a_supervisor_that_fails_costs_no_answer():
    output, _ = run("""
class Supervisor:
    def replace_at(self, at_monotonic, timeout_seconds):
        raise OSError("gone")
supervised.supervisor = Supervisor()
print(call(isolated(on_timeout="replace")(lambda event, context: "done"), 10))
""")
    assert "perinvoke's supervisor could not be told" in output
    assert output.endswith("done\n")


def test_nothing_of_it_is_loaded_before_an_invocation_has_a_deadline():
    output, _ = run("""
for name in ("deadline_watch", "thread_watch", "process_timer"):
    assert f"perinvoke.invocation.{name}" not in sys.modules
handler = isolated(lambda event, context: "done")
print(handler({}, None), call(isolated(on_timeout="off")(lambda event, context: "off")))
print("perinvoke.invocation.process_timer" in sys.modules, call(handler, 20), "perinvoke.invocation.process_timer" in sys.modules)
""")
    assert output == "done off\nFalse done True\n"
