"""The queue for Celery's own command, which finds it here: `celery --app workers inspect ping`."""

from shared.queue import celery_app
from shared.settings import get_settings

app = celery_app(get_settings().broker_url)
