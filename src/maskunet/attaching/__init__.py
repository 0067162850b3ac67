"""Where masks meet a network: `attach` and its hooks, `detach`, `disabled`, and the trace that `record` returns."""

from .attachment import Attachment, attach, attachment_of, detach, disabled, reattach, record
from .trace import Trace

__all__ = ["Attachment", "Trace", "attach", "attachment_of", "detach", "disabled", "reattach", "record"]
