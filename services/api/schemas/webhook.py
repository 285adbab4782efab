"""Schemas of webhooks."""

from pydantic import BaseModel, ConfigDict, HttpUrl

from shared.domain.webhook import Webhook


class WebhookIn(BaseModel):
    """A new webhook: the URL that receives an event for every turn that ends."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"url": "https://example.com/tenor"}]})

    url: HttpUrl


class WebhooksOut(BaseModel):
    """All webhooks of a tenant."""

    webhooks: list[Webhook]
