"""`python -m benchmarks.bare_route PORT`: serves one FastAPI route that inserts a turn and does nothing else.

It checks no API key and creates no job: the least that a service which stores turns has to do.
"""

import os
import sys
from typing import LiteralString
from uuid import UUID

import uvicorn
from fastapi import FastAPI
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool
from pydantic import BaseModel

TABLE: LiteralString = """
CREATE TABLE IF NOT EXISTS bare_turns (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id uuid NOT NULL,
    text text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""
DATABASE_URL = "BARE_DATABASE_URL"
"""The environment variable that holds the database's URL."""


class Turn(BaseModel):
    text: str


def create_app(pool: ConnectionPool[Connection[TupleRow]]) -> FastAPI:
    """Return the application, which inserts into the database of `pool`."""
    app = FastAPI()

    @app.post("/sessions/{session_id}/turns", status_code=201)
    def add_turn(session_id: UUID, turn: Turn) -> dict[str, UUID]:
        with pool.connection() as connection:
            query = "INSERT INTO bare_turns (session_id, text) VALUES (%s, %s) RETURNING id"
            row = connection.execute(query, [session_id, turn.text]).fetchone()
        assert row is not None
        return {"id": row[0]}

    return app


if __name__ == "__main__":
    with ConnectionPool[Connection[TupleRow]](os.environ[DATABASE_URL], min_size=10, max_size=20) as pool:
        with pool.connection() as connection:
            connection.execute(TABLE)
        app = create_app(pool)
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
