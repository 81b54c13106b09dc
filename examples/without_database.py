"""For unit tests: jobs run at once in the caller, or are dropped; no database is asked."""

from datetime import date

from pgtasks import App

app = App("billing")


@app.task(retries=2)
def send_invoice(customer: str, due: date) -> str:
    return f"{customer} pays until {due:%d %B}"


if __name__ == "__main__":
    with app.eager():
        print(send_invoice.delay("Ann", due=date(2026, 12, 24)).get())
    with app.ignoring(send_invoice) as discarded:
        send_invoice.delay("Bob", due=date(2026, 12, 24))
        print(len(discarded), "discarded:", discarded[0].kwargs)
