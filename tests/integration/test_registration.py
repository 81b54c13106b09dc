"""How a task gets its name and its queue, and how a name finds its task."""

import sys
from typing import Any

import pytest

from pgtasks import (
    App,
    ConfigurationError,
    Job,
    JobState,
    TaskExistsError,
    UnknownTaskError,
    shared_task,
)
from pgtasks.task import shared_tasks


@pytest.fixture
def no_shared_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared tasks of one test belong to no app of another."""
    monkeypatch.setattr("pgtasks.registry.shared_tasks", shared_tasks[:0])
    monkeypatch.setattr("pgtasks.registry.shared_tasks", [])


def test_a_task_is_called_after_its_module_and_function(app):
    @app.task
    def greet() -> None: ...

    test = "test_a_task_is_called_after_its_module_and_function"
    assert greet.name == f"{__name__}.{test}.greet"
    assert greet.delay().job().task == greet.name


def test_an_explicit_name_replaces_module_and_function(app):
    @app.task(name="send-email")
    def anything() -> None: ...

    assert anything.delay().job().task == "send-email"
    assert app.find_task("send-email") is anything


def test_a_raw_task_takes_any_arguments_since_it_gets_the_job(app):
    @app.task(name="custom-job", raw=True)
    def custom(job: Job) -> None: ...

    job = custom.delay(1, 2, three=3).job()

    assert (job.task, job.args, job.kwargs) == ("custom-job", [1, 2], {"three": 3})


def test_two_functions_with_one_name_are_an_error_at_definition(app):
    @app.task(name="twice")
    def one() -> None: ...

    with pytest.raises(TaskExistsError, match=r"'twice' is registered already.*test_registration"):

        @app.task(name="twice")
        def other() -> None: ...

    assert app.find_task("twice") is one


def test_one_name_in_two_apps_is_no_conflict(app):
    other = App("other")

    @app.task(name="same")
    def one() -> None: ...

    @other.task(name="same")
    def two() -> None: ...

    assert app.find_task("same") is one
    assert other.find_task("same") is two


@pytest.mark.parametrize("name", ["", " ", "no spaces", "1st", "tab\t", "x" * 201, "name\n"])
def test_a_task_name_that_is_none_is_refused(app, name):
    with pytest.raises(ConfigurationError):
        app.task(name=name)(len) if name else app.send_task(name)
    with pytest.raises(ConfigurationError, match="task name"):
        app.send_task(name)


def test_send_task_needs_no_function_here(app):
    result = app.send_task("elsewhere.add", [1], {"b": 2}, queue="far", priority=2, countdown=60)

    job = result.job()
    assert (job.task, job.args, job.kwargs) == ("elsewhere.add", [1], {"b": 2})
    assert (job.queue, job.priority, job.state) == ("far", 2, JobState.SCHEDULED)


def test_send_task_of_a_known_task_uses_its_options_and_checks_its_arguments(app):
    @app.task(name="add", queue="sums", priority=3)
    def add(a: int, b: int) -> int:
        return a + b

    job = app.send_task("add", [1], {"b": 2}).job()

    assert (job.queue, job.priority) == ("sums", 3)
    with pytest.raises(TypeError, match="missing 1 required"):
        app.send_task("add", [1])


async def test_asend_task_writes_the_same_job(async_app):
    result = await async_app.asend_task("elsewhere.add", [1], {"b": 2}, queue="far")

    job = await result.ajob()
    assert (job.task, job.args, job.kwargs, job.queue) == ("elsewhere.add", [1], {"b": 2}, "far")


def test_routes_by_pattern_decide_the_queue_unless_the_call_does(app):
    app.routes = {"mail.urgent*": "urgent", "mail.*": "mail"}

    @app.task(name="mail.send", queue="other")
    def send() -> None: ...

    assert send.delay().job().queue == "mail"
    assert send.apply_async(queue="said").job().queue == "said"
    assert app.send_task("mail.urgent-one").job().queue == "urgent"
    assert app.send_task("sums.add").job().queue == "default"
    assert app.queue_names() == ["default", "mail", "urgent"]


def test_a_route_may_be_a_function_of_the_name(app):
    app.routes = lambda name: "mail" if name.startswith("mail") else None

    @app.task(name="sum", queue="sums")
    def sum_() -> None: ...

    assert app.send_task("mail.send").job().queue == "mail"
    assert sum_.delay().job().queue == "sums"
    with pytest.raises(ConfigurationError, match="not a name"):
        App("bad", routes=lambda name: "no spaces").send_task("any")


@pytest.mark.usefixtures("no_shared_tasks")
def test_a_shared_task_goes_to_the_current_app(app):
    other = App("other", app.dsn)

    @shared_task(name="shared", queue="shared")
    def shared(a: int) -> int:
        return a * 2

    with app.current():
        result = shared.delay(4)
    other.close()

    assert shared(4) == 8
    assert result.app is app
    job = result.job()
    assert (job.task, job.queue, job.args) == ("shared", "shared", [4])


@pytest.mark.usefixtures("no_shared_tasks")
def test_a_shared_task_is_found_by_name_in_every_app(app):
    @shared_task(name="shared")
    def shared() -> None: ...

    assert app.find_task("shared").app is app
    assert App("other").find_task("shared").app is not app


@pytest.mark.usefixtures("no_shared_tasks")
def test_autodiscover_imports_the_tasks_of_packages_when_a_name_is_looked_up(
    app, tmp_path, monkeypatch
):
    for package, tasks in {"shop_with": True, "shop_without": False}.items():
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        if tasks:
            (folder / "tasks.py").write_text(
                "from pgtasks import shared_task\n@shared_task(queue='shop')\ndef sell(): ...\n"
            )
    monkeypatch.syspath_prepend(tmp_path)

    app.autodiscover(["shop_with", "shop_without"])
    early = "shop_with.tasks" in sys.modules
    found = app.find_task("shop_with.tasks.sell")

    assert not early
    assert (found.queue, found.app) == ("shop", app)
    for name in [one for one in sys.modules if one.startswith("shop_with")]:
        del sys.modules[name]


def test_an_unknown_name_is_an_error_that_lists_what_is_known(app):
    @app.task(name="known")
    def known() -> None: ...

    with pytest.raises(
        UnknownTaskError, match=r"no task is named 'unknown' in this app: found.*known"
    ):
        app.find_task("unknown")


def test_a_subclass_given_as_base_is_what_the_task_is(app):
    from pgtasks import Task

    class Audited(Task[Any, Any]):
        audited = True

    @app.task(base=Audited, name="audited")
    def audited() -> None: ...

    assert isinstance(audited, Audited)
    assert audited.delay().job().task == "audited"
    with pytest.raises(ConfigurationError, match=r"subclass of pgtasks\.Task"):
        app.task(base=dict)(len)
