"""A unique key through the death of the worker that runs its job."""

from pgtasks import App
from tests.fixtures import sample_app
from tests.fixtures.eventually import eventually
from tests.fixtures.runs import Runs
from tests.fixtures.workers import Gate, Workers, wait_until_begun, warm_up


def test_a_job_keeps_its_key_when_its_worker_is_killed(
    app: App, workers: Workers, runs: Runs, gate: Gate
) -> None:
    def call():
        return sample_app.step.apply_async((runs.path, str(gate)), unique=lambda: "one")

    victim = workers.start(concurrency=1, beat=0.2)
    warm_up(runs)
    first = call()
    wait_until_begun(runs, first.id)
    victim.kill()
    assert (call().id, call().created) == (first.id, False)

    workers.start(concurrency=1, beat=0.2)

    def ran_again() -> None:
        assert len(runs.of(first.id)) == 2
        assert (call().id, call().created) == (first.id, False)

    eventually(ran_again, timeout=20)
    gate.open()
    first.get(timeout=20)
    assert call().created
