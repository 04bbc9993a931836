"""``perinvoke-pgbouncer``: a Lambda extension that runs PgBouncer beside the workers. Nothing is imported from here."""
