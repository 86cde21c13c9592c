"""What a worker's log says of trouble that is none."""

import logging

import pytest
from kombu.message import Message

from worker.__main__ import without_traceback


class LostConnection:
    no_ack_consumers: tuple[str, ...] = ()

    def basic_ack(self, *arguments: object, **options: object) -> None:
        raise ConnectionResetError("Connection reset by peer")


def test_a_connection_lost_before_an_acknowledgement_is_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("celery.worker.request")
    logger.addFilter(without_traceback)
    try:
        Message(channel=LostConnection(), delivery_tag="tag").ack_log_error(logger, (ConnectionError,))
    finally:
        logger.removeFilter(without_traceback)
    (said,) = caplog.records
    assert (said.levelname, said.exc_info) == ("WARNING", None)
    assert "Connection reset by peer" in said.getMessage()
