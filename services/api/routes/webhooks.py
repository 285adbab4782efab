"""Webhooks: whom to tell when a turn has ended."""

from uuid import UUID

from fastapi import APIRouter, Request, Response

from services.api.dependencies import ManageKey, Res
from services.api.idempotency import identify, respond
from services.api.routing import ApiRoute
from services.api.schemas import WebhookIn, WebhooksOut
from shared.domain.idempotency import Answer
from shared.domain.webhook import Event, NewWebhook
from shared.errors import InvalidRequest

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=ApiRoute)
events = APIRouter()


@router.post("", status_code=201, response_model=NewWebhook, summary="Have a URL told of every turn that ends")
def create_webhook(body: WebhookIn, request: Request, res: Res, key: ManageKey) -> Response:
    if body.url.scheme != "https" and not res.settings.webhook_private:
        raise InvalidRequest("url: should begin with https://")
    idempotent = identify(request, key, body)
    with res.database.transaction() as transaction:
        answer = transaction.idempotency.find(idempotent)
        if answer is None:
            webhook = transaction.webhooks.create(key.tenant_id, str(body.url))
            answer = Answer(201, webhook.model_dump_json(), webhook_id=webhook.id)
            transaction.idempotency.save((idempotent, answer))
    return respond(request, answer)


@router.get("", summary="Read which URLs are told, and what they could not be told")
def read_webhooks(res: Res, key: ManageKey) -> WebhooksOut:
    with res.database.transaction() as transaction:
        return WebhooksOut(webhooks=transaction.webhooks.all(key.tenant_id))


@router.delete("/{webhook_id}", status_code=204, summary="Tell a URL nothing any more")
def delete_webhook(webhook_id: UUID, res: Res, key: ManageKey) -> None:
    with res.database.transaction() as transaction:
        transaction.webhooks.delete(key.tenant_id, webhook_id)


@events.post("turn.ended", summary="A turn has ended")
def turn_ended(event: Event) -> None:
    """Posted to your webhooks, signed as Standard Webhooks has it. Answer 2xx; whatever else, it is posted again."""
