"""Jobs that commit with your data, or not at all."""

import os

import psycopg

from pgtasks import App

app = App("shop", dsn=os.environ.get("PGTASKS_DSN", "embedded:"))


@app.task(name="confirm-order")
def confirm(order: int) -> str:
    return f"order {order} confirmed"


def place_order(connection: psycopg.Connection, customer: str, *, paid: bool) -> None:
    """Insert an order and enqueue its confirmation, in one transaction."""
    with connection.transaction():
        cursor = connection.execute(
            "insert into orders (customer) values (%s) returning id", (customer,)
        )
        (order,) = cursor.fetchone() or (0,)
        confirm.using(connection).delay(order)
        if not paid:
            raise psycopg.Rollback


if __name__ == "__main__":
    app.migrate()
    with app.pools.connect() as connection:
        connection.execute("create temporary table orders (id serial, customer text)")
        place_order(connection, "Ann", paid=True)
        place_order(connection, "Bob", paid=False)
    print(len(app.jobs(task="confirm-order")), "job was enqueued")
