"""Where pgtasks meets PostgreSQL: the only package, with the worker's parent, that knows psycopg.

``statements`` loads the SQL, ``operations`` says what to run, ``run`` runs it.
"""
