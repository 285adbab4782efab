"""The errors of Tenor, in one tree.

TenorError
├── RequestError                      the caller's mistake; the same request fails again
│   ├── MalformedRequest        400   request_malformed: it is not HTTP
│   ├── InvalidRequest          422   request_invalid
│   ├── Unauthenticated         401   unauthenticated
│   ├── Forbidden               403   forbidden
│   ├── NotFound                404   not_found
│   │   ├── SessionNotFound           session_not_found
│   │   ├── TurnNotFound              turn_not_found
│   │   ├── RecordingNotFound         recording_not_found
│   │   ├── JobNotFound               job_not_found
│   │   ├── WebhookNotFound           webhook_not_found
│   │   └── TenantNotFound            tenant_not_found
│   ├── MethodNotAllowed        405   method_not_allowed
│   ├── SessionClosed           409   session_closed
│   ├── WrongJobStatus          409   job_status_wrong: the job's status does not allow this
│   ├── TooManyWebhooks         409   webhooks_too_many
│   ├── WebhookGone             410   webhook_gone: it accepts no events any more
│   ├── WebhookForbidden        422   webhook_forbidden: events may not be sent to its address
│   ├── IdempotencyKeyReused    422   idempotency_key_reused: another request was sent with the key
│   ├── BodyTooLarge            413   body_too_large
│   ├── HeadersTooLarge         431   headers_too_large
│   ├── TextTooLong             413   text_too_long
│   ├── AudioTooLong            413   audio_too_long
│   ├── UnsupportedMediaType    415   media_type_unsupported
│   ├── UnsupportedEncoding     415   content_encoding_unsupported: the body is compressed in another way than gzip
│   └── AudioError              422   the audio itself cannot be used
│       ├── AudioEmpty                audio_empty
│       ├── AudioUndecodable          audio_undecodable
│       ├── AudioNotFinite            audio_not_finite
│       ├── AudioDecoderFailed        audio_decoder_failed: it crashed the decoder, or ran into its limits, twice
│       └── RecordingGone       410   recording_gone
├── SetupError                  500   setup_invalid: a person must change something
│   ├── BundleError                   bundle_invalid
│   └── WeightsMissing                weights_missing
├── RequestTimeout              408   request_timeout: the request came too slowly
├── Unavailable                 503   unavailable: try again later
│   ├── TooManyConnections            connections_too_many
│   ├── Busy                          busy: too many bytes are being uploaded
│   ├── ResolverBusy                  resolver_busy: too many look-ups of host names are under way
│   └── StorageFull             507   storage_full: the disk of the audio or of the database is full
├── IdempotencyKeyInProgress    409   idempotency_key_in_progress: the first request with the key is being carried out
├── ClaimLost                   500   claim_lost: another worker took the job over; it does it now
├── StageTimeout                500   stage_timeout: an attempt took too long in one stage
├── AttemptsExhausted           500   attempts_exhausted: every attempt at the job failed
├── JobDropped                  500   job_dropped: a person ended it without a result
└── BenchmarkFailed             500   benchmark_failed: nothing was measured
"""

from collections.abc import Sequence

EX_TEMPFAIL = 75
"""The exit status of a worker that ends because its threads hang (sysexits.h): starting it again helps."""

EX_CONFIG = 78
"""The exit status of a process that met a SetupError (sysexits.h): starting it again does not help."""


class TenorError(Exception):
    """The root. `code` is stable, and `status` is the HTTP status.

    `retryable` says whether the same request or job may succeed later. By it alone a client decides whether to send a
    request again, and a worker whether a failed job runs again.
    """

    code = "internal_error"
    status = 500
    title = "Internal error"
    retryable = False

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RequestError(TenorError):
    code = "bad_request"
    status = 400
    title = "Bad request"


class MalformedRequest(RequestError):
    code = "request_malformed"
    title = "The request is not valid HTTP"


class InvalidRequest(RequestError):
    code = "request_invalid"
    status = 422
    title = "The request is not valid"


class Unauthenticated(RequestError):
    code = "unauthenticated"
    status = 401
    title = "No valid API key"


class Forbidden(RequestError):
    code = "forbidden"
    status = 403
    title = "The API key may not do this"


class NotFound(RequestError):
    code = "not_found"
    status = 404
    title = "Not found"


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"
    status = 405
    title = "The path does not take this method"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method[:20]!r} is not a method of this path: send {' or '.join(allowed)}")
        self.allowed = allowed


class SessionNotFound(NotFound):
    code = "session_not_found"
    title = "No such session"


class TurnNotFound(NotFound):
    code = "turn_not_found"
    title = "No such turn"


class RecordingNotFound(NotFound):
    code = "recording_not_found"
    title = "No such recording"


class JobNotFound(NotFound):
    code = "job_not_found"
    title = "No such job"


class WebhookNotFound(NotFound):
    code = "webhook_not_found"
    title = "No such webhook"


class TenantNotFound(NotFound):
    code = "tenant_not_found"
    title = "No such tenant"


class WrongJobStatus(RequestError):
    code = "job_status_wrong"
    status = 409
    title = "The job's status does not allow this"


class TooManyWebhooks(RequestError):
    code = "webhooks_too_many"
    status = 409
    title = "There are too many webhooks"


class WebhookGone(RequestError):
    code = "webhook_gone"
    status = 410
    title = "The webhook accepts no events any more"


class WebhookForbidden(RequestError):
    code = "webhook_forbidden"
    status = 422
    title = "Events may not be sent to the address of the webhook"


class SessionClosed(RequestError):
    code = "session_closed"
    status = 409
    title = "The session is closed"


class IdempotencyKeyReused(RequestError):
    code = "idempotency_key_reused"
    status = 422
    title = "The Idempotency-Key belongs to another request"


class BodyTooLarge(RequestError):
    code = "body_too_large"
    status = 413
    title = "The request body is too large"


class HeadersTooLarge(RequestError):
    code = "headers_too_large"
    status = 431
    title = "The request headers are too large"


class TextTooLong(RequestError):
    code = "text_too_long"
    status = 413
    title = "The text is too long"


class AudioTooLong(RequestError):
    code = "audio_too_long"
    status = 413
    title = "The recording is too long"


class UnsupportedMediaType(RequestError):
    code = "media_type_unsupported"
    status = 415
    title = "Unsupported media type"


class UnsupportedEncoding(RequestError):
    code = "content_encoding_unsupported"
    status = 415
    title = "Unsupported content encoding"


class AudioError(RequestError):
    code = "audio_invalid"
    status = 422
    title = "The recording cannot be used"


class AudioEmpty(AudioError):
    code = "audio_empty"
    title = "The recording is empty"


class AudioUndecodable(AudioError):
    code = "audio_undecodable"
    title = "The recording cannot be decoded"


class AudioNotFinite(AudioError):
    code = "audio_not_finite"
    title = "The recording holds samples that are not numbers"


class AudioDecoderFailed(AudioError):
    code = "audio_decoder_failed"
    title = "The recording makes the decoder fail"


class RecordingGone(AudioError):
    code = "recording_gone"
    status = 410
    title = "The recording was deleted"


class SetupError(TenorError):
    code = "setup_invalid"
    title = "Tenor is not set up correctly"
    # The request or job is not to blame: it succeeds on another process, or once a person has corrected the setup.
    retryable = True


class BundleError(SetupError):
    code = "bundle_invalid"
    title = "The model bundle is not valid"


class WeightsMissing(SetupError):
    code = "weights_missing"
    title = "Model weights are missing"


class RequestTimeout(TenorError):
    code = "request_timeout"
    status = 408
    title = "The request came too slowly"
    retryable = True


class Unavailable(TenorError):
    code = "unavailable"
    status = 503
    title = "Temporarily unavailable"
    retryable = True


class TooManyConnections(Unavailable):
    code = "connections_too_many"
    title = "Too many connections are open"


class Busy(Unavailable):
    code = "busy"
    title = "Too much is being uploaded"


class ResolverBusy(Unavailable):
    code = "resolver_busy"
    title = "Too many host names are being looked up"


class StorageFull(Unavailable):
    code = "storage_full"
    status = 507
    title = "There is no space to store this"


class IdempotencyKeyInProgress(TenorError):
    code = "idempotency_key_in_progress"
    status = 409
    title = "The first request with this Idempotency-Key is being carried out"
    retryable = True


class ClaimLost(TenorError):
    code = "claim_lost"
    title = "Another worker took the job over"


class StageTimeout(TenorError):
    code = "stage_timeout"
    title = "A stage of the analysis took too long"
    retryable = True


class AttemptsExhausted(TenorError):
    code = "attempts_exhausted"
    title = "Every attempt failed"


class JobDropped(TenorError):
    code = "job_dropped"
    title = "An operator dropped the job"


class BenchmarkFailed(TenorError):
    code = "benchmark_failed"
    title = "Nothing was measured"
