"""Opening PostgreSQL as people name it, and outliving its restarts."""

import signal

import pytest
from sqlalchemy import text

from services.common.errors import BadConfig, Unavailable
from services.trainer.campaign_store import CampaignStore
from services.trainer.database import open_database
from tests.postgres import Postgres
from tests.unit.trainer.conftest import make_config


def options(engine):
    """What the driver connected with."""
    with engine.connect() as connection:
        return connection.connection.driver_connection.info.get_parameters()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_url_needs_no_name_of_a_driver(postgres, scheme):
    engine = open_database(postgres.url.replace("postgresql", scheme, 1))
    assert engine.driver == "psycopg"
    assert CampaignStore(engine).campaigns() == []
    engine.dispose()


@pytest.mark.slow
def test_a_server_that_vanishes_is_noticed_unless_the_url_says_otherwise(postgres):
    engine = open_database(postgres.url)
    assert (options(engine)["connect_timeout"], options(engine)["tcp_user_timeout"]) == ("5", "25000")
    engine.dispose()
    engine = open_database(f"{postgres.url}?connect_timeout=9&application_name=mine")
    found = options(engine)
    assert (found["connect_timeout"], found["application_name"]) == ("9", "mine")
    assert found["tcp_user_timeout"] == "25000"
    engine.dispose()


def test_a_kind_of_database_that_is_not_there_is_named():
    with pytest.raises(BadConfig, match=r"querent\[postgres\]"):
        open_database("oracledb://me@host/querent")


def pause_on_a_server_that_stops(store, server, sent):
    with store.writing() as session:
        session.execute(text("UPDATE campaigns SET state = 'paused'"))
        server.stop(sent)
        session.execute(text("UPDATE campaigns SET reason = 'never'"))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGQUIT], ids=["in good order", "as in a crash"])
def test_a_restarted_server_is_away_and_then_there_again_for_the_same_store(sent):
    server = Postgres()
    try:
        server.start()
        store = CampaignStore(open_database(server.url))
        name = store.create(make_config(), "source", ["cat", "dog"]).name
        server.stop(sent)
        with pytest.raises(Unavailable):
            store.campaign(name)
        server.start()
        assert store.campaign(name).state == "running"
        with pytest.raises(Unavailable):
            pause_on_a_server_that_stops(store, server, sent)
        server.start()
        assert store.campaign(name).state == "running"
    finally:
        server.remove()
