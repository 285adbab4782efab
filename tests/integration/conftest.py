from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from services.api.app import create_app
from shared.domain.access import KeyRole
from shared.settings import Settings
from shared.store.database import Database

MakeKey = Callable[[str, KeyRole], str]


@pytest.fixture
def make_key(database: Database) -> MakeKey:
    def make(tenant: str, role: KeyRole) -> str:
        with database.transaction() as transaction:
            return transaction.accounts.create_key(transaction.accounts.ensure_tenant(tenant), "test", role)

    return make


@pytest.fixture
def api(settings: Settings, make_key: MakeKey) -> Iterator[TestClient]:
    """A client of the API, with an admin's key of the tenant `acme`."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {make_key('acme', KeyRole.admin)}"
        yield client


@pytest.fixture
def session_id(api: TestClient) -> str:
    return api.post("/v1/sessions", json={}).json()["id"]
