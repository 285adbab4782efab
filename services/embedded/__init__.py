"""An embedded run: a private Postgres and Valkey, the API and one worker, supervised by one process."""
