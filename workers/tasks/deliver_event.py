"""A webhook is told of an event, signed as Standard Webhooks has it (https://www.standardwebhooks.com)."""

import asyncio
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import httpx2 as httpx
from standardwebhooks.webhooks import Webhook

from shared.domain.job import Job, Message
from shared.domain.webhook import Delivery
from shared.errors import Unavailable, WebhookForbidden, WebhookGone
from shared.settings import Settings
from shared.store.database import Database, Transaction
from workers.engine import Enter, Write

_LIMIT_S = 10.0
# Site-local addresses, and those that stand for one of IPv4 (6to4): Python takes them for global.
_NOT_GLOBAL = tuple(map(ip_network, ("fec0::/10", "2002::/16")))


class DeliverEvent:
    """A tenant names the URL, so what its host's name stands for is looked up each time, and nothing else is called."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._private = settings.webhook_private
        self._database = database
        self._tls = httpx.create_ssl_context()

    def read(self, transaction: Transaction, job: Job) -> Delivery:
        """The event, and whom to tell of it."""
        return transaction.webhooks.delivery(job)

    def do(self, job: Job, delivery: Delivery, enter: Enter) -> Write:
        """Tell a webhook of an event. One that answers 410 is never told of any again."""
        if delivery.disabled_at is not None:
            raise WebhookGone("the webhook was disabled before it was told")
        enter("deliver")
        addresses = self._addresses(httpx.URL(delivery.url))
        status = asyncio.run(self._post(delivery, addresses[(job.attempts - 1) % len(addresses)]))
        if status == httpx.codes.GONE:
            with self._database.transaction() as transaction:
                transaction.webhooks.disable(delivery.webhook_id, "it answered 410")
            raise WebhookGone("the receiver answered 410")
        if not httpx.codes.is_success(status):
            raise Unavailable(f"the receiver answered {status}")

        def write(transaction: Transaction) -> Sequence[Message]:
            transaction.webhooks.delivered(job)
            return ()

        return write

    def _addresses(self, url: httpx.URL) -> Sequence[str]:
        """What the host's name stands for.

        Raises:
            WebhookForbidden: an address of it is none that anybody may reach, or the URL is not https.
            Unavailable: it stands for nothing.
        """
        if not self._private and url.scheme != "https":
            raise WebhookForbidden("the URL does not begin with https://")
        try:
            found = socket.getaddrinfo(url.raw_host, url.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unavailable("the receiver's name could not be resolved") from error
        addresses = [str(address[0]) for *_, address in found]
        if not self._private and not all(map(_is_global, addresses)):
            raise WebhookForbidden("the receiver is not on the public internet")
        return addresses

    async def _post(self, delivery: Delivery, address: str) -> int:
        """The status of the answer; nothing more of it is read.

        Raises:
            Unavailable: there was none in time.
        """
        url, body = httpx.URL(delivery.url), delivery.event.model_dump_json().encode()
        asked = {
            "url": url.copy_with(host=address),
            "headers": {"Host": url.netloc.decode(), **_headers(delivery, body)},
            "extensions": {"sni_hostname": url.raw_host.decode()},
        }
        # Neither proxies nor passwords of this machine's are for a tenant's use.
        client = httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=None)
        try:
            async with asyncio.timeout(_LIMIT_S), client, client.stream("POST", **asked, content=body) as response:
                return response.status_code
        except (httpx.HTTPError, TimeoutError) as error:
            raise Unavailable(f"the receiver could not be reached ({type(error).__name__})") from error


def _headers(delivery: Delivery, body: bytes) -> dict[str, str]:
    now, name = datetime.now(UTC), str(delivery.id)
    return {
        "Content-Type": "application/json",
        "User-Agent": "Tenor",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(delivery.secret).sign(name, now, body.decode()),
    }


def _is_global(address: str) -> bool:
    its = ip_address(address)
    nobodys = its.is_multicast or its.is_reserved or any(its in network for network in _NOT_GLOBAL)
    return its.is_global and not nobodys
