"""A task that runs of its own accord: every second here, every night in the other line."""

import os
import time

from pgtasks import App, crontab

app = App("schedules", dsn=os.environ.get("PGTASKS_DSN", "embedded:"), timezone="Europe/Vienna")


@app.schedule("* * * * * *", name="every second", catch_up="skip")  # the sixth field is the second
@app.schedule("30 2 * * *", name="nightly", catch_up="one")  # once, too, when the clocks are set
@app.schedule(crontab(minute=0, day_of_week="mon-fri"), name="working days")  # as in Celery
@app.task
def clean_up() -> str:
    return "cleaned up"


if __name__ == "__main__":
    app.migrate()
    with app.worker(concurrency=1):  # it sees to the schedules, too, and so does any other
        while len(done := app.jobs("succeeded", origin="schedule every second")) < 2:
            time.sleep(0.1)
        app.schedules.pause("every second", by="the example")
        for job in reversed(done):
            if job.start_at and job.started_at:
                late = (job.started_at - job.start_at).total_seconds()
                print(f"{job.start_at:%H:%M:%S} {job.result}, {late * 1000:.0f} ms late")
        for schedule in app.schedules.list():
            next_run = schedule.next_ticks(1)[0].astimezone()
            print(f"{schedule.name}: {schedule.spec}, {schedule.state}, next {next_run:%a %H:%M}")
