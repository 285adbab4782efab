"""Routes of webhooks: URLs that receive an event for every turn that ends."""

from uuid import UUID

from fastapi import APIRouter, Request, Response

from services.api.dependencies import ManageKey, ResourcesDep
from services.api.idempotency import identify, respond
from services.api.routing import ApiRoute
from services.api.schemas.webhook import WebhookIn, WebhooksOut
from shared.domain.idempotency import Answer
from shared.domain.webhook import Event, NewWebhook
from shared.errors import InvalidRequest

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=ApiRoute)
events = APIRouter()


@router.post(
    "",
    status_code=201,
    response_model=NewWebhook,
    summary="Register a URL for the events of turns",
)
def create_webhook(body: WebhookIn, request: Request, resources: ResourcesDep, key: ManageKey) -> Response:
    if body.url.scheme != "https" and not resources.settings.webhooks.allow_private:
        raise InvalidRequest("url: should begin with https://")
    idempotent = identify(request, key, body)
    with resources.database.transaction() as transaction:
        answer = transaction.idempotency.find(idempotent)
        if answer is None:
            webhook = transaction.webhooks.create(key.tenant_id, str(body.url))
            answer = Answer(201, webhook.model_dump_json(), webhook_id=webhook.id)
            transaction.idempotency.save((idempotent, answer))
    return respond(request, answer)


@router.get("", summary="List the registered URLs, with the events that could not be delivered")
def read_webhooks(resources: ResourcesDep, key: ManageKey) -> WebhooksOut:
    with resources.database.transaction() as transaction:
        return WebhooksOut(webhooks=transaction.webhooks.all(key.tenant_id))


@router.delete("/{webhook_id}", status_code=204, summary="Remove a URL, which then receives no more events")
def delete_webhook(webhook_id: UUID, resources: ResourcesDep, key: ManageKey) -> None:
    with resources.database.transaction() as transaction:
        transaction.webhooks.delete(key.tenant_id, webhook_id)


@events.post("turn.ended", summary="A turn has ended")
def turn_ended(event: Event) -> None:
    """Posted to your webhooks, signed as Standard Webhooks specifies. It is posted again until the response is 2xx."""
